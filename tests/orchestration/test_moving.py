"""A server registers again at another address, or turns out to be another one: nothing of the old one stays with it."""

import asyncio
import time

import pytest

from apps.orchestration.models import Server
from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.test_registration import REGISTER, flat, row, until_models


async def test_what_the_old_address_says_late_is_not_the_new_ones(
    operator: Client, client: Client, server_id: str, model: str
) -> None:
    with Fleet.start(models=[f"{model}-old"]) as old, Fleet.start(models=[model]) as new:
        old.behave("slow_start 1500", path="/v1/models")
        await operator.post(flat(server_id, old), REGISTER)
        await old.until(bool, 2)
        await operator.post(flat(server_id, new), REGISTER)
        await asyncio.sleep(2.5)
        await until_models(operator, server_id, [model])
        assert (await client.post(chat(model))).status == 200


async def test_what_the_old_address_says_is_dropped_whoever_has_asked(citadel: Instance, server_id: str) -> None:
    """As another worker does, which knows nothing of the second registration."""
    from apps.orchestration import registry
    from apps.orchestration.discovery import Found, place_of

    before = Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9, registered_by="k")
    place = place_of(before)
    Server.objects.filter(server_id=server_id).update(port=10)
    registry.keep_found(before, place, Found("vllm", []))
    registry.shut_out(before, place)
    after = Server.objects.get(server_id=server_id)
    assert (after.kind, after.state) == ("", "active")
    registry.keep_found(after, place_of(after), Found("vllm", []))
    assert Server.objects.get(server_id=server_id).kind == "vllm"
    registry.shut_out(after, place_of(Server.objects.get(server_id=server_id)))
    assert Server.objects.get(server_id=server_id).state == "disabled"


@pytest.mark.parametrize("state", Server.State.values)
def test_who_may_be_called_is_asked_when_it_is_back(citadel: Instance, server_id: str, model: str, state: str) -> None:
    """One that drains too: it may hold other models by the time it is enabled, when nobody asks it again."""
    from apps.orchestration.tasks import learn

    with Fleet.start(models=[model]) as server:
        row = Server(server_id=server_id, hostname=server.host, port=server.port, kind="openai", state=state)
        row.save()
        learn(server_id)
        is_called = state in ("active", "draining")
        assert [held.name for held in row.models.all()] == ([model] if is_called else [])
        assert is_called or not server.connections()


async def test_a_changed_address_begins_with_a_clean_record(
    citadel: Instance, operator: Client, client: Client, server_id: str, model: str
) -> None:
    place = f"/orchestration/servers/{server_id}"
    with Fleet.start(models=[model]) as server:
        told = flat(server_id, server, models=[model])
        await operator.post({**told, "port": 1}, REGISTER)
        await operator.post({"load_metrics": {"cpu": 1, "queue": 9}}, f"{place}/heartbeat")
        assert (await client.post(chat(model))).status == 503
        for _ in range(100):
            if (await row(operator, server_id))["health_status"] == "unhealthy":
                break
            await asyncio.sleep(0.05)
        assert (await row(operator, server_id))["health_reason"] == "refused"
        await operator.post(told, REGISTER)
        assert (await client.post(chat(model))).status == 200
        listed = await row(operator, server_id)
        assert (listed["health_status"], listed["load_metrics"]["cpu"]) == ("healthy", None)
        await asyncio.sleep(0.6)  # in which workers look at the board again
        assert (await client.post(chat(model))).status == 200
        from apps.orchestration.models import Event

        changes = [one.data["to"] for one in Event.objects.filter(server_id=server_id, type="health_status_changed")]
        assert sorted(changes) == ["healthy", "unhealthy"]


async def test_another_kind_keeps_no_list_of_models_in_memory(
    operator: Client, client: Client, server_id: str, model: str
) -> None:
    with Fleet.start(kind="ollama", models=[model]) as ollama:
        await operator.post(flat(server_id, ollama, models=[model], kind="ollama"), REGISTER)
        await operator.get(f"/orchestration/servers/{server_id}/health?probe=true")
        await until_loaded(operator, model, False)
        await operator.post({**flat(server_id, ollama), "kind": "openai"}, REGISTER)
        await until_loaded(operator, model, None)


async def until_loaded(operator: Client, model: str, loaded: bool | None) -> None:
    begun = time.monotonic()
    while True:
        page = (await operator.get("/management/models/list?limit=1000")).json()
        [found] = [one["loaded"] for one in page["data"] if one["id"] == model]
        if found is loaded:
            return
        assert time.monotonic() - begun < 5 + HELD_UP, found
        await asyncio.sleep(0.1)


def test_that_a_list_was_read_is_known_of_the_address_where_it_was(citadel: Instance, server_id: str) -> None:
    """Whoever named its models besides."""
    from apps.orchestration import registry
    from apps.orchestration.dialects import FoundModel
    from apps.orchestration.discovery import Found, place_of
    from apps.orchestration.fleet import load

    row = Server.objects.create(server_id=server_id, hostname="127.0.0.1", port=9, kind="openai")
    registry.name_models(row, [FoundModel("m")])
    registry.keep_found(row, place_of(row), Found("openai", []))
    assert not load().servers[server_id].listed
    registry.keep_found(row, place_of(row), Found("openai", [FoundModel("m")]))
    assert load().servers[server_id].listed
    row.port = 10
    row.save()
    registry.arrived(row)
    assert not load().servers[server_id].listed
