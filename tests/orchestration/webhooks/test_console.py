"""Webhooks in the console: credentials shown once, what was given up sent again, addresses checked."""

import re
import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection

from tests.instance import Instance

pytestmark = pytest.mark.usefixtures("citadel")


@pytest.fixture
def console(citadel: Instance) -> Iterator[Any]:
    """A signed-in administrator's browser."""
    from django.contrib.auth.models import User
    from django.test import Client

    user = User.objects.create_superuser(f"admin-{secrets.token_hex(4)}", password=None)
    browser = Client()
    browser.force_login(user)
    yield browser
    user.delete()


@pytest.fixture
def hook() -> Iterator[Any]:
    from apps.orchestration.models import Hook

    made = Hook.objects.create(name=f"hook-{secrets.token_hex(4)}")
    yield made
    made.delete()


@pytest.fixture
def subscription() -> Iterator[Any]:
    from apps.orchestration.models import Subscription
    from apps.orchestration.webhooks import subscribing

    made = Subscription.objects.create(url="http://127.0.0.1:9/", enabled=False)
    yield made
    subscribing.end(made)


def act(console: Any, page: str, action: str, row: Any) -> str:
    """What the page says after an action on one row."""
    answer = console.post(page, {"action": action, "_selected_action": [row.pk]}, follow=True)
    assert answer.status_code == 200
    return str(answer.content.decode())


@pytest.mark.parametrize("how", ["page", "action"])
def test_subscriptions_are_deleted_though_events_happen(console: Any, how: str) -> None:
    from apps.orchestration.models import Event, Subscription

    made = [Subscription.objects.create(url="http://127.0.0.1:9/") for _ in range(15)]
    over = threading.Event()

    def happen() -> None:
        while not over.is_set():
            Event.objects.create(type="server_enabled", server_id="none", at=datetime.now(UTC))
        connection.close()

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        for number in range(0, 15, 5):
            some = [row.pk for row in made[number : number + 5]]
            if how == "action":
                form = {"action": "delete_selected", "_selected_action": some, "post": "yes"}
                assert console.post("/admin/orchestration/subscription/", form).status_code == 302
            for pk in some if how == "page" else ():
                page = f"/admin/orchestration/subscription/{pk}/delete/"
                assert console.post(page, {"post": "yes"}).status_code == 302
    finally:
        over.set()
        thread.join()
    assert not Subscription.objects.filter(pk__in=[row.pk for row in made]).exists()


@pytest.mark.parametrize("page", ["hook", "receivedwebhook", "subscription", "delivery"])
def test_the_pages_are_there(console: Any, page: str) -> None:
    assert console.get(f"/admin/orchestration/{page}/").status_code == 200


def test_a_bearer_is_shown_once(console: Any, hook: Any) -> None:
    page = "/admin/orchestration/hook/"
    [token] = re.findall(r"whk_[\w-]+", act(console, page, "make_bearer", hook))
    assert token not in console.get(page).content.decode()
    hook.refresh_from_db()
    assert len(hook.token_digest) == 64
    assert token not in hook.token_digest


def test_a_secret_is_shown_once(console: Any, hook: Any, subscription: Any) -> None:
    for page, action, row in (("hook", "make_secret", hook), ("subscription", "new_secret", subscription)):
        found = re.findall(r"whsec_[\w+/=]+", act(console, f"/admin/orchestration/{page}/", action, row))
        assert len(found) == 1
        assert "whsec_" not in console.get(f"/admin/orchestration/{page}/{row.pk}/change/").content.decode()


def test_what_was_given_up_is_sent_again(console: Any, subscription: Any) -> None:
    from apps.orchestration.models import Delivery

    fields = {"type": "x", "payload": {}, "next_at": "2020-01-01T00:00:00Z", "state": "dead", "attempts": 6}
    first, second = (Delivery.objects.create(subscription=subscription, event_id=n, **fields) for n in (1, 2))
    act(console, "/admin/orchestration/delivery/", "replay", first)
    assert [Delivery.objects.get(pk=one.pk).state for one in (first, second)] == ["pending", "dead"]
    act(console, "/admin/orchestration/subscription/", "replay", subscription)
    assert Delivery.objects.get(pk=second.pk).state == "pending"


def test_an_address_that_may_not_be_called_is_refused(console: Any) -> None:
    from apps.orchestration.models import Subscription

    url = "http://169.254.169.254/x"
    answer = console.post("/admin/orchestration/subscription/add/", {"url": url, "events": "[]", "enabled": "on"})
    assert answer.status_code == 200
    assert "may not be called" in answer.content.decode()
    assert not Subscription.objects.filter(url=url).exists()


def test_a_form_writes_what_was_changed_in_it_alone(console: Any, subscription: Any) -> None:
    """While the page is open the receiver says that it is gone; a choice of the operator's counts."""
    from apps.orchestration.models import Subscription

    page, rows = f"/admin/orchestration/subscription/{subscription.pk}/change/", Subscription.objects.all()
    rows = rows.filter(pk=subscription.pk)
    form = {"url": subscription.url, "events": "[]"}
    for shown, chosen, after in (("True", "on", (False, "gone", 3)), ("False", "on", (True, "", 0))):
        rows.update(enabled=False, disabled_reason="gone", failures=3)
        sent = {**form, "description": f"was {shown}", "initial-enabled": shown, "enabled": chosen}
        assert console.post(page, sent).status_code == 302
        found = rows.get()
        assert (found.enabled, found.disabled_reason, found.failures) == after
        assert (found.description, found.salt) == (f"was {shown}", subscription.salt)


def test_rules_are_edited_there(console: Any) -> None:
    """As an operator would define a type of webhook."""
    from apps.orchestration.models import Hook

    name = f"hook-{secrets.token_hex(4)}"
    form = {
        "name": name,
        "enabled": "on",
        "items": "",
        "fields": '["host"]',
        "identity": "[]",
        "description": "",
        "rules-TOTAL_FORMS": "1",
        "rules-INITIAL_FORMS": "0",
        "rules-0-position": "1",
        "rules-0-action": "drain",
        "rules-0-match": '{"state": "down"}',
        "rules-0-server": '["host"]',
    }
    wrong = console.post("/admin/orchestration/hook/add/", {**form, "rules-0-server": '"host"'})
    assert (wrong.status_code, Hook.objects.filter(name=name).count()) == (200, 0)
    assert console.post("/admin/orchestration/hook/add/", form).status_code == 302
    made = Hook.objects.get(name=name)
    assert [(rule.match, rule.server, rule.action) for rule in made.rules.all()] == [
        ({"state": "down"}, ["host"], "drain")
    ]
    made.delete()


@pytest.mark.parametrize("how", ["page", "action"])
def test_a_type_for_which_a_server_drains_is_not_deleted(console: Any, hook: Any, how: str) -> None:
    """No report could enable the server any more; the page says what to do."""
    from apps.orchestration.models import Hold, Hook, ReceivedWebhook, Server

    ReceivedWebhook.objects.create(hook=hook, sender="key", outcome="done")
    row = Server.objects.create(server_id=f"s-{hook.name}", hostname="127.0.0.1", port=9, state="draining")
    Hold.objects.create(server=row, hook=hook)
    page, sent = f"/admin/orchestration/hook/{hook.pk}/delete/", {"post": "yes"}
    if how == "action":
        page, sent = "/admin/orchestration/hook/", {**sent, "action": "delete_selected", "_selected_action": hook.pk}
    try:
        said = console.post(page, sent)
        assert f"{hook} holds {row}: enable this server first" in said.content.decode()
        assert Hook.objects.filter(pk=hook.pk).exists()
    finally:
        row.delete()
    assert console.post(page, sent).status_code == 302
    assert not Hook.objects.filter(pk=hook.pk).exists()
