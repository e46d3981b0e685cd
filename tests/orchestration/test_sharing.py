"""Traffic is shared exactly by the weights, smoothly, and follows what the operator says of a server."""

import asyncio
from collections import Counter
from collections.abc import Callable

import aiohttp
import pytest

from tests.fleet.control import Fleet
from tests.instance import Instance

Start = Callable[..., Fleet]


async def ask(http: aiohttp.ClientSession, model: str) -> str:
    """The server that answered."""
    async with http.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 1}) as answer:
        await answer.read()
        return answer.headers.get("x-citadel-server", str(answer.status))


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (3, 2, 1), (5, 1)])
@pytest.mark.parametrize("at_once", [False, True])
async def test_each_round_has_each_server_as_often_as_its_weight_says(
    fleet: Start, model: str, http: aiohttp.ClientSession, weights: tuple[int, ...], at_once: bool
) -> None:
    names = {fleet(model, weight=weight).server_id: weight for weight in weights}
    rounds, length = 4, sum(weights)
    if at_once:
        asked = await asyncio.gather(*(ask(http, model) for _ in range(rounds * length)))
        assert Counter(asked) == {name: weight * rounds for name, weight in names.items()}
        return
    asked = [await ask(http, model) for _ in range(rounds * length)]
    for start in range(0, rounds * length, length):
        assert Counter(asked[start : start + length]) == names


async def test_models_have_turns_of_their_own(fleet: Start, model: str, http: aiohttp.ClientSession) -> None:
    """What is asked of one model does not shift the turns of another on the same servers."""
    from apps.orchestration.models import Server

    first, second = fleet(model), fleet(model)
    for server in (first, second):
        Server.objects.get(server_id=server.server_id).models.create(name=f"{model}-b")
    await wait_until_both_hold(http, f"{model}-b")
    turns = [(await ask(http, model), await ask(http, f"{model}-b")) for _ in range(4)]
    assert Counter(name for name, _ in turns) == {first.server_id: 2, second.server_id: 2}


async def wait_until_both_hold(http: aiohttp.ClientSession, name: str) -> None:
    while True:
        async with http.get(f"/v1/models/{name}") as answer:
            if answer.status == 200 and len((await answer.json())["citadel"]["servers"]) == 2:
                return


@pytest.mark.parametrize("state", ["draining", "disabled"])
async def test_a_server_that_an_operator_takes_out_gets_nothing_new_and_ends_what_runs(
    citadel: Instance, fleet: Start, model: str, http: aiohttp.ClientSession, state: str
) -> None:
    from apps.orchestration.models import Server

    leaves, stays = fleet(model, weight=1000), fleet(model)
    leaves.behave("slow_start 700", next=1)
    running = asyncio.create_task(ask(http, model))
    await leaves.until(lambda log: log)
    Server.objects.filter(server_id=leaves.server_id).update(state=state)
    citadel.settle()
    assert {await ask(http, model) for _ in range(5)} == {stays.server_id}
    assert await running == leaves.server_id
    Server.objects.filter(server_id=leaves.server_id).update(state="active")
    citadel.settle()
    assert leaves.server_id in {await ask(http, model) for _ in range(5)}


async def test_without_an_active_server_a_model_is_unavailable_not_unknown(
    citadel: Instance, fleet: Start, model: str, http: aiohttp.ClientSession
) -> None:
    from apps.orchestration.models import Server

    server = fleet(model)
    Server.objects.filter(server_id=server.server_id).update(state="draining")
    citadel.settle()
    async with http.post("/v1/completions", json={"model": model, "prompt": "a"}) as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "no_server_available"
        assert int(answer.headers["retry-after"]) >= 1
