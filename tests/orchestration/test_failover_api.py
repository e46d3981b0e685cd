"""`POST /orchestration/failover/{server_id}`: an operator gives a server up, and enables it again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.embedded.conftest import eventually
from tests.fleet.control import Fleet
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.health import watchers

Start = Callable[..., Fleet]
THREE = ["failover_initiated", "failover_completed", "cluster_rebalanced"]


@pytest.fixture
async def operator(citadel: Instance) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {citadel.key(role='operator')}"}
    async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
        yield session


def told(citadel: Instance, server_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What is told of the server's failover."""
    return [event for event in watchers.told(citadel, server_id) if event[0] in THREE]


async def fail_over(session: aiohttp.ClientSession, server_id: str, **request: Any) -> tuple[int, Any]:
    async with session.post(f"/orchestration/failover/{server_id}", **request) as answer:
        return answer.status, await answer.json()


async def chat(session: aiohttp.ClientSession, model: str) -> str:
    """The id of the server that answers."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    async with session.post("/v1/chat/completions", json=body) as said:
        return said.headers["x-citadel-server"]


def state_of(server_id: str) -> str:
    from apps.orchestration.models import Server

    return Server.objects.get(server_id=server_id).state


async def test_the_server_is_drained_its_share_goes_to_others_and_comes_back(
    citadel: Instance, fleet: Start, model: str, operator: aiohttp.ClientSession
) -> None:
    from apps.orchestration.models import Server

    gone, left = fleet(model), fleet(model)
    status, answer = await fail_over(operator, gone.server_id)
    assert (status, answer["status"], answer["server_id"]) == (200, "failover_initiated", gone.server_id)
    assert answer["result"] == {"models": 1, "shares": {model: {left.server_id: 1.0}}, "without_server": []}
    assert [kind for kind, _, _ in told(citadel, gone.server_id)] == THREE
    assert told(citadel, gone.server_id)[0][2] == {"cause": "manual", "reason": "operator"}
    assert state_of(gone.server_id) == "draining"
    citadel.settle()
    for _ in range(3):
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        async with operator.post("/v1/chat/completions", json=body) as said:
            assert said.headers["x-citadel-server"] == left.server_id
    assert await fail_over(operator, gone.server_id) == (status, answer)
    assert len(told(citadel, gone.server_id)) == 3
    Server.objects.filter(server_id=gone.server_id).update(state="active")
    eventually(lambda: len(told(citadel, gone.server_id)) == 4, 15)
    kind, _, data = told(citadel, gone.server_id)[-1]
    assert (kind, data["cause"]) == ("cluster_rebalanced", "recovery")
    assert data["shares"] == {model: {gone.server_id: 0.5, left.server_id: 0.5}}


async def test_one_right_after_the_last_ones_end_is_another(
    citadel: Instance, fleet: Start, model: str, operator: aiohttp.ClientSession
) -> None:
    """However soon: it is told, and what waits for the server's first byte moves."""
    gone, left = fleet(model), fleet(model)
    gone.behave("hang", path="/v1/chat/completions")
    citadel.settle()
    for number in range(1, 4):
        before = len(gone.log())
        asked = [asyncio.create_task(chat(operator, model)) for _ in range(8)]
        await gone.until(lambda log, before=before: [visit for visit in log[before:] if visit.method == "POST"])
        assert (await fail_over(operator, gone.server_id))[0] == 200
        assert set(await asyncio.wait_for(asyncio.gather(*asked), 5 + HELD_UP)) == {left.server_id}
        begun = [event for event in told(citadel, gone.server_id) if event[2].get("cause") != "recovery"]
        assert [kind for kind, _, _ in begun] == THREE * number
        async with operator.post(f"/orchestration/servers/{gone.server_id}/enable") as answer:
            assert answer.status == 200
    eventually(lambda: told(citadel, gone.server_id)[-1][2]["cause"] == "recovery", 15)
    assert told(citadel, gone.server_id)[-1][2]["shares"] == {model: {gone.server_id: 0.5, left.server_id: 0.5}}


async def test_it_is_told_as_a_drain_too_as_the_end_is_as_an_enabling(
    citadel: Instance, fleet: Start, model: str, operator: aiohttp.ClientSession
) -> None:
    server = fleet(model)
    for _ in range(2):
        await fail_over(operator, server.server_id)
    async with operator.post(f"/orchestration/servers/{server.server_id}/enable") as answer:
        assert answer.status == 200
    events = [event for event in watchers.told(citadel, server.server_id) if event[0] not in THREE]
    acts = [
        (kind, data["before"], data["state"]) for kind, _, data in events if kind.startswith(("server_d", "server_e"))
    ]
    assert acts == [("server_drained", "active", "draining"), ("server_enabled", "draining", "active")]
    assert {data["by"] for kind, _, data in events if kind in ("server_drained", "server_enabled")} == {
        f"key {operator.headers['authorization'].split('_')[1]}"
    }


async def test_after_the_answer_nothing_goes_there(
    citadel: Instance, fleet: Start, model: str, operator: aiohttp.ClientSession
) -> None:
    """The tests' Citadel has one worker, which gave the answer."""
    for _ in range(5):
        gone, left = fleet(model), fleet(model)
        citadel.settle()
        assert (await fail_over(operator, gone.server_id))[0] == 200
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        for _ in range(4):
            async with operator.post("/v1/chat/completions", json=body) as said:
                assert said.headers["x-citadel-server"] == left.server_id
        assert (await fail_over(operator, left.server_id))[0] == 200


@pytest.mark.parametrize("request_", [{"data": b""}, {"json": {}}, {"json": {"x": 1}}])
async def test_a_body_is_not_looked_at(
    citadel: Instance, fleet: Start, model: str, operator: aiohttp.ClientSession, request_: dict[str, Any]
) -> None:
    server = fleet(model)
    status, answer = await fail_over(operator, server.server_id, **request_)
    assert (status, answer["result"]["without_server"]) == (200, [model])


@pytest.mark.parametrize("path", ["failover/{}", "servers/{}/drain", "servers/{}/enable", "servers/{}/disable"])
@pytest.mark.parametrize("body", [b"no JSON", b'{"reason": ', b"[1]", b"7"])
async def test_what_is_no_object_does_nothing(
    fleet: Start, model: str, operator: aiohttp.ClientSession, path: str, body: bytes
) -> None:
    server = fleet(model)
    async with operator.post("/orchestration/" + path.format(server.server_id), data=body) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_json")
    assert state_of(server.server_id) == "active"


@pytest.mark.parametrize("state", ["disabled", "pending"])
async def test_who_gets_no_work_anyway_is_a_conflict(
    citadel: Instance, fleet: Start, model: str, operator: aiohttp.ClientSession, state: str
) -> None:
    from apps.orchestration.models import Server

    server = fleet(model)
    Server.objects.filter(server_id=server.server_id).update(state=state)
    status, answer = await fail_over(operator, server.server_id)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert state_of(server.server_id) == state
    assert not told(citadel, server.server_id)


@pytest.mark.parametrize("server_id", ["nobody", "x" * 300, "a%00b", "%20"])
async def test_who_is_not_there(operator: aiohttp.ClientSession, server_id: str) -> None:
    async with operator.post(URL(f"/orchestration/failover/{server_id}", encoded=True)) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "server_not_found")


@pytest.mark.parametrize(("role", "status"), [("auditor", 403), ("developer", 403), ("operator", 404), ("admin", 404)])
async def test_who_may(citadel: Instance, http: aiohttp.ClientSession, role: str, status: int) -> None:
    headers = {"authorization": f"Bearer {citadel.key(role=role)}"}
    assert (await fail_over(http, "nobody", headers=headers))[0] == status
    assert (await fail_over(http, "nobody", headers={"authorization": ""}))[0] == 401
