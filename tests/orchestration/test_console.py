"""The fleet in the console: what is done there is asked, checked and told as everywhere."""

import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client as Browser

from tests.fleet.control import Fleet
from tests.instance import Instance

NO_MODELS = {
    "models-TOTAL_FORMS": "0",
    "models-INITIAL_FORMS": "0",
    "models-MIN_NUM_FORMS": "0",
    "models-MAX_NUM_FORMS": "1000",
}


@pytest.fixture
def browser(citadel: Instance) -> Iterator[Browser]:
    user = get_user_model().objects.create_superuser(f"admin-{secrets.token_hex(4)}", password="p")
    browser = Browser(headers={"host": "localhost"})
    browser.force_login(user)
    browser.user = user  # type: ignore[attr-defined]
    yield browser
    user.delete()


@pytest.fixture
def server_id(citadel: Instance) -> Iterator[str]:
    name = f"console-{secrets.token_hex(4)}"
    yield name
    citadel.remove(name)


def form(server_id: str, server: Fleet, *, shown: str = "active", **more: str) -> dict[str, str]:
    """As a browser sends it that was `shown` the state."""
    fields = {"server_id": server_id, "scheme": "http", "hostname": server.host, "port": str(server.port), "kind": ""}
    fields |= {"state": "active", "weight": "1", "max_concurrent": "0", "capabilities": "[]", "services": ""}
    fields["initial-state"] = shown
    return {**fields, **NO_MODELS, **more}


def types(server_id: str) -> list[str]:
    from apps.orchestration.models import Event

    return list(Event.objects.filter(server_id=server_id).order_by("id").values_list("type", flat=True))


def test_a_base_path_is_kept_without_its_version(browser: Browser, server_id: str, model: str) -> None:
    """And a server that has none any more by that has not moved: it keeps its key."""
    from apps.orchestration.models import Server

    with Fleet.start(models=[model], api_key="secret") as server:
        told = form(server_id, server, base_path="/v1")
        added = browser.post("/admin/orchestration/server/add/", {**told, "api_key": "secret"})
        assert added.status_code == 302, added.content
        row = Server.objects.get(server_id=server_id)
        assert (row.base_path, row.url, row.models.get().name) == ("", server.url, model)
        page = f"/admin/orchestration/server/{row.pk}/change/"
        own = {"models-0-server": str(row.pk), "models-0-id": str(row.models.get().pk), "models-0-name": model}
        counts = {"models-TOTAL_FORMS": "1", "models-INITIAL_FORMS": "1"}
        assert browser.post(page, {**told, "kind": row.kind, **counts, **own}).status_code == 302
        row.refresh_from_db()
        assert (row.base_path, row.api_key) == ("", "secret")


def test_a_server_that_is_added_is_asked_what_it_is(browser: Browser, server_id: str, model: str) -> None:
    from apps.orchestration.models import Server

    with Fleet.start(kind="ollama", models=[model]) as server:
        added = browser.post("/admin/orchestration/server/add/", form(server_id, server, role="GPU", api_key="secret"))
        assert added.status_code == 302, added.content
        row = Server.objects.get(server_id=server_id)
        assert (row.kind, row.role, row.services, row.models.get().name) == ("ollama", "GPU", [], model)
        page = browser.get(f"/admin/orchestration/server/{row.pk}/change/")
        assert b"secret" not in page.content
        own = {"models-0-server": str(row.pk), "models-0-id": str(row.models.get().pk), "models-0-name": model}
        new = {"models-1-server": str(row.pk), "models-1-name": f"{model}-b"}
        counts = {"models-TOTAL_FORMS": "2", "models-INITIAL_FORMS": "1"}
        changed = form(server_id, server, state="draining", kind="ollama", **counts, **own, **new)
        assert browser.post(f"/admin/orchestration/server/{row.pk}/change/", changed).status_code == 302
        row.refresh_from_db()
        assert (row.state, row.api_key) == ("draining", "secret")
        browser.post("/admin/orchestration/server/", {"action": "find_models", "_selected_action": row.pk})
        assert dict(row.models.values_list("name", "named_by")) == {model: "", f"{model}-b": "operator"}
        browser.post("/admin/orchestration/server/", {"action": "enable", "_selected_action": row.pk})
        browser.post(f"/admin/orchestration/server/{row.pk}/delete/", {"post": "yes"})
        assert types(server_id) == ["server_registered", "server_drained", "server_enabled", "server_departed"]


def test_what_is_typed_in_for_a_model_its_server_does_not_undo(browser: Browser, server_id: str, model: str) -> None:
    from apps.orchestration.models import Server

    with Fleet.start(kind="ollama", models=[model], context_length=4096) as server:
        browser.post("/admin/orchestration/server/add/", form(server_id, server))
        row = Server.objects.get(server_id=server_id)
        own = {"models-0-server": str(row.pk), "models-0-id": str(row.models.get().pk), "models-0-name": model}
        counts = {"models-TOTAL_FORMS": "1", "models-INITIAL_FORMS": "1", "kind": row.kind}
        told = row.models.get().capabilities
        for length, can, known in (
            ("512", '["x"]', (512, ["x"])),
            ("", '["x"]', (4096, ["x"])),
            ("512", '["x"]', (512, ["x"])),
            ("512", "", (512, told)),
        ):
            what = {"models-0-context_length": length, "models-0-capabilities": can}
            fields = form(server_id, server, **counts, **own, **what)
            assert browser.post(f"/admin/orchestration/server/{row.pk}/change/", fields).status_code == 302
            browser.post("/admin/orchestration/server/", {"action": "find_models", "_selected_action": row.pk})
            held = row.models.get()
            assert (held.context_length, held.capabilities) == known


@pytest.mark.parametrize(("typed", "sent"), [("", None), ("new", "Bearer new")])
def test_a_server_that_moves_does_not_take_its_key_along(
    browser: Browser, server_id: str, model: str, typed: str, sent: str | None
) -> None:
    """Who may change a server but not see its key shall not get it sent to a machine of his own."""
    from apps.orchestration.models import ServedModel, Server

    with Fleet.start(models=[model]) as server, Fleet.start(kind="ollama", models=[f"{model}-b"]) as other:
        row = Server.objects.create(server_id=server_id, hostname=server.host, port=server.port, kind="openai")
        Server.objects.filter(pk=row.pk).update(api_key="secret")
        held = [
            ServedModel.objects.create(server=row, name=name, named_by=by)
            for name, by in ((model, ""), ("x", "registration"))
        ]
        own = {
            f"models-{i}-{name}": str(value)
            for i, one in enumerate(held)
            for name, value in (("server", row.pk), ("id", one.pk), ("name", one.name))
        }
        counts = {"models-TOTAL_FORMS": "2", "models-INITIAL_FORMS": "2"}
        fields = form(server_id, other, kind="openai", api_key=typed, **own, **counts)
        assert browser.post(f"/admin/orchestration/server/{row.pk}/change/", fields).status_code == 302
        row.refresh_from_db()
        assert (row.url, row.api_key, row.kind) == (other.url, typed, "ollama")
        assert {seen.headers.get("authorization") for seen in other.log()} == {sent}
        assert {one.name for one in row.models.all()} == {"x", f"{model}-b"}
        assert types(server_id) == ["server_registered"]


def test_a_key_is_kept_until_it_is_removed(browser: Browser, server_id: str) -> None:
    from apps.orchestration.models import Server

    with Fleet.start() as server:
        row = Server.objects.create(server_id=server_id, hostname=server.host, port=server.port, api_key="secret")
        page, fields = f"/admin/orchestration/server/{row.pk}/change/", form(server_id, server, hostname="LOCALHOST")
        Server.objects.filter(pk=row.pk).update(hostname="localhost")
        for more, key in (({}, "secret"), ({"remove_key": "on"}, "")):
            assert browser.post(page, {**fields, **more}).status_code == 302
            row.refresh_from_db()
            assert row.api_key == key
        assert types(server_id) == []


@pytest.mark.parametrize(("saved", "holds"), [("draining", 1), ("active", 0), ("disabled", 0)])
def test_what_an_operator_chooses_for_a_drained_server_no_webhook_undoes(
    browser: Browser, citadel: Instance, server_id: str, model: str, saved: str, holds: int
) -> None:
    """As by the API; a state that is left as it is shown is not chosen."""
    from apps.orchestration.models import Hold, Hook, Server

    hook = Hook.objects.get(name="alertmanager")
    with Fleet.start(models=[model]) as server:
        browser.post("/admin/orchestration/server/add/", form(server_id, server))
        row = Server.objects.get(server_id=server_id)
        Server.objects.filter(pk=row.pk).update(state="draining")
        Hold.objects.create(server=row, hook=hook, cause="alert")
        own = {"models-0-server": str(row.pk), "models-0-id": str(row.models.get().pk), "models-0-name": model}
        counts = {"models-TOTAL_FORMS": "1", "models-INITIAL_FORMS": "1"}
        changed = form(server_id, server, shown="draining", state=saved, kind=row.kind, weight="3", **counts, **own)
        assert browser.post(f"/admin/orchestration/server/{row.pk}/change/", changed).status_code == 302
        row.refresh_from_db()
        assert (row.state, row.weight, row.holds.count()) == (saved, 3, holds)
        told = {"draining": [], "active": ["server_enabled"], "disabled": ["server_drained"]}[saved]
        assert types(server_id) == ["server_registered", *told]


def test_a_state_that_is_left_as_it_was_shown_is_no_word_about_it(
    browser: Browser, citadel: Instance, server_id: str, model: str
) -> None:
    """A webhook may have drained the server while the page was open."""
    from apps.orchestration.models import Hold, Hook, Server

    hook = Hook.objects.get(name="alertmanager")
    with Fleet.start(models=[model]) as server:
        browser.post("/admin/orchestration/server/add/", form(server_id, server))
        row = Server.objects.get(server_id=server_id)
        page = f"/admin/orchestration/server/{row.pk}/change/"
        assert re.search(rb'<input type="hidden" name="initial-state" value="active"', browser.get(page).content)
        Server.objects.filter(pk=row.pk).update(state="draining")
        Hold.objects.create(server=row, hook=hook, cause="alert")
        own = {"models-0-server": str(row.pk), "models-0-id": str(row.models.get().pk), "models-0-name": model}
        more = {"models-TOTAL_FORMS": "1", "models-INITIAL_FORMS": "1", **own}
        changed = form(server_id, server, state="active", kind=row.kind, weight="3", **more)
        assert browser.post(page, changed).status_code == 302
        row.refresh_from_db()
        assert (row.state, row.weight, row.holds.count()) == ("draining", 3, 1)
        assert types(server_id) == ["server_registered"]


def test_saving_an_active_server_says_nothing_of_its_health(
    browser: Browser, citadel: Instance, server_id: str, model: str
) -> None:
    """That it is to be active goes without saying; to enable it is a word of its own."""
    import redis

    from apps.orchestration.health.board import SAY
    from apps.orchestration.health.glance import health_in_words
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server, redis.Redis.from_url(citadel.redis_url) as board:
        browser.post("/admin/orchestration/server/add/", form(server_id, server))
        board.eval(SAY.text, 0, server_id, "webhook", "unhealthy", "hot", "{}", "[]", "-1")
        row = Server.objects.get(server_id=server_id)
        page = f"/admin/orchestration/server/{row.pk}/change/"
        own = {"models-0-server": str(row.pk), "models-0-id": str(row.models.get().pk), "models-0-name": model}
        more = {"models-TOTAL_FORMS": "1", "models-INITIAL_FORMS": "1", "kind": row.kind, **own}
        found, shown = [], "active"
        for state in ("active", "disabled", "active"):
            fields = form(server_id, server, shown=shown, state=state)
            assert browser.post(page, {**fields, **more}).status_code == 302
            shown = state
            found.append(health_in_words()(server_id).split()[0])
        assert found == ["unhealthy", "unhealthy", "healthy"]


@pytest.mark.parametrize("by", ["action", "form"])
def test_a_server_that_waited_for_approval_is_asked_for_its_models(
    browser: Browser, server_id: str, model: str, by: str
) -> None:
    """Nobody has asked it before, though it has said what it is and names a model."""
    from apps.orchestration.models import ServedModel, Server

    with Fleet.start(models=[f"{model}-b"]) as server:
        row = Server(server_id=server_id, hostname=server.host, port=server.port, kind="openai", state="pending")
        row.registered_by = "k"
        row.save()
        held = ServedModel.objects.create(server=row, name=model, named_by="registration")
        own = {"models-0-server": str(row.pk), "models-0-id": str(held.pk), "models-0-name": model}
        more = {"models-TOTAL_FORMS": "1", "models-INITIAL_FORMS": "1", "kind": "openai", **own}
        if by == "action":
            chosen = {"action": "enable", "_selected_action": str(row.pk)}
            said = browser.post("/admin/orchestration/server/", chosen, follow=True)
        else:
            page = f"/admin/orchestration/server/{row.pk}/change/"
            said = browser.post(page, form(server_id, server, shown="pending", **more), follow=True)
        assert f" at {server.url}: {model}-b" in said.content.decode()
        row.refresh_from_db()
        assert (row.state, [one.name for one in row.models.all()]) == ("active", [model, f"{model}-b"])


@pytest.mark.parametrize("state", ["pending", "disabled"])
def test_a_server_that_is_not_to_be_called_is_not_asked(
    browser: Browser, citadel: Instance, server_id: str, model: str, state: str
) -> None:
    """Nobody may have approved its address: neither a form nor an action is enough to send the key there."""
    from apps.orchestration.models import Server

    with Fleet.start() as server, Fleet.start(models=[model]) as known, citadel.registered(known.url, []) as other:
        fields = form(server_id, server, shown=state, state=state, api_key="secret")
        assert browser.post("/admin/orchestration/server/add/", fields).status_code == 302
        row = Server.objects.get(server_id=server_id)
        changed = {**fields, "weight": "3"}
        assert browser.post(f"/admin/orchestration/server/{row.pk}/change/", changed).status_code == 302
        row.refresh_from_db()
        assert (row.state, row.weight, server.connections()) == (state, 3, [])
        chosen = {"action": "find_models", "_selected_action": [row.pk, Server.objects.get(server_id=other).pk]}
        said = browser.post("/admin/orchestration/server/", chosen, follow=True).content.decode()
        assert f"{server_id[1:]}: it is {state}, and called once it is enabled" in said
        assert f"{other[1:]} at {known.url}: {model}" in said
        assert not server.connections()


def test_nobody_waits_while_a_server_is_asked(browser: Browser, citadel: Instance, server_id: str, model: str) -> None:
    """The epoch's row is held no longer than the form's own rows are written."""
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server, ThreadPoolExecutor(1) as thread:
        server.behave("slow_start 1500", path="/v1/models")
        row = Server.objects.create(server_id=server_id, hostname=server.host, port=server.port, state="disabled")
        page = f"/admin/orchestration/server/{row.pk}/change/"
        posted = thread.submit(_posted, browser, page, form(server_id, server, shown="disabled"))
        server.wait_for(bool)
        with psycopg.connect(citadel.database_url) as other:
            other.execute("SET lock_timeout = '500ms'")
            other.execute("UPDATE orchestration_epoch SET number = number + 1")
        assert f" at {server.url}: {model}" in posted.result(20)


def _posted(browser: Browser, page: str, fields: dict[str, str]) -> str:
    try:
        return browser.post(page, fields, follow=True).content.decode()
    finally:
        connection.close()


@pytest.mark.parametrize("hostname", ["169.254.169.254", "8.8.8.8", "a b", "user@host"])
def test_an_address_that_may_not_be_called_is_refused(browser: Browser, server_id: str, hostname: str) -> None:
    from apps.orchestration.models import Server

    with Fleet.start() as server:
        page = browser.post("/admin/orchestration/server/add/", form(server_id, server, hostname=hostname))
        assert page.status_code == 200
        assert b"errorlist" in page.content
        assert not Server.objects.filter(server_id=server_id).exists()
        assert not server.log()


def test_a_class_can_be_emptied_and_is_checked(browser: Browser, server_id: str) -> None:
    from apps.orchestration.models import ModelClass

    fields = {"name": server_id, "position": "99", "patterns": "", "servers": "", "shares": "", "strategy": ""}
    assert browser.post("/admin/orchestration/modelclass/add/", fields).status_code == 302
    row = ModelClass.objects.get(name=server_id)
    assert (row.patterns, row.servers, row.shares) == ([], [], {})
    wrong = browser.post(f"/admin/orchestration/modelclass/{row.pk}/change/", {**fields, "shares": '{"a": 0}'})
    assert b"shares are whole numbers" in wrong.content
    row.delete()


def test_events_are_read_and_not_changed(browser: Browser, server_id: str) -> None:
    from apps.orchestration.events import tell_now
    from apps.orchestration.messages import Registered
    from apps.orchestration.models import Event

    tell_now(server_id, Registered())
    event = Event.objects.get(server_id=server_id)
    assert server_id.encode() in browser.get("/admin/orchestration/event/").content
    assert browser.get("/admin/orchestration/event/add/").status_code == 403
    assert browser.post(f"/admin/orchestration/event/{event.pk}/delete/", {"post": "yes"}).status_code == 403
    event.delete()
