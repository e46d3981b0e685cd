"""A server registers again at another address, or turns out to be another one: nothing of the old one stays with it."""

import asyncio

from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.orchestration.test_registration import REGISTER, flat, until_models


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


async def test_what_the_old_address_says_is_dropped_whoever_has_asked(citadel: object, server_id: str) -> None:
    """As another worker does, which knows nothing of the second registration."""
    from apps.orchestration import registry
    from apps.orchestration.discovery import Found, place_of
    from apps.orchestration.models import Server

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
