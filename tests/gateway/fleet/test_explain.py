"""`POST /orchestration/route/explain`: what would become of a request, and nothing happens by asking."""

import asyncio
import time
from typing import Any

import pytest

from apps.gateway.routing_api import outcome_of
from apps.orchestration.fleet import Server
from apps.orchestration.routing.plan import Plan
from tests.gateway.client import chat
from tests.gateway.fleet.conftest import Asker, Four
from tests.gateway.fleet.test_workloads import hold, operate
from tests.held_up import HELD_UP

A, B = (Server(name, f"http://{name}", "openai", max_concurrent=2) for name in "ab")
UNLIMITED = Server("c", "http://c", "openai")


async def explain(client: Asker, body: dict[str, Any], status: int = 200) -> Any:
    async with client.session.post("/orchestration/route/explain", json=body) as answer:
        assert answer.status == status
        return await answer.json()


async def test_it_tells_who_would_be_asked_and_who_not(four: Four, model: str) -> None:
    servers = [four.server(model, weight=weight) for weight in (3, 1, 1)]
    operate(four, servers[2], "drain")
    async with four.asking() as client:
        told = await explain(client, chat(model, stream=True))
    assert told["model"] == model
    assert (told["strategy"], told["class"], told["lacking"], told["trial"]) == (
        "weighted_round_robin",
        None,
        None,
        None,
    )
    assert {row["server_id"]: row["weight"] for row in told["order"]} == {
        servers[0].server_id: 3.0,
        servers[1].server_id: 1.0,
    }
    assert told["dropped"] == [{"server_id": servers[2].server_id, "reason": "draining"}]
    assert told["needs"] == {"capabilities": [], "tokens": 0, "streams": True, "session": False}
    assert (told["outcome"], told["assigned_server"]) == ("served", told["order"][0]["server_id"])
    assert told["retry_after"] is None


async def test_nothing_happens_by_it(four: Four, model: str) -> None:
    servers = [four.server(model) for _ in range(3)]
    async with four.asking(one_worker=True) as client:
        told = [await explain(client, chat(model)) for _ in range(12)]
    assert len({row["assigned_server"] for row in told}) == 1, "the worker's turn stays where it is"
    assert not [visit for server in servers for visit in server.log() if visit.method == "POST"]


async def test_it_tells_places_and_who_waits(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1)
    async with four.asking() as client:
        free = await explain(client, chat(model))
        assert (free["order"][0]["in_use"], free["waiting"], free["outcome"]) == (0, 0, "served")
        held = await hold(client, model)
        waiting = asyncio.create_task(client.chat(model))
        await asyncio.sleep(0.2)
        full = await explain(client, chat(model))
        assert (full["order"][0]["in_use"], full["waiting"]) == (1, 1)
        assert (full["outcome"], full["assigned_server"]) == ("waits", None)
        async with client.session.delete(f"/orchestration/workload/{held.id}") as answer:
            assert answer.status == 200
        assert (await waiting).server == server.server_id
        assert (await explain(client, chat(model)))["order"][0]["in_use"] == 0


async def test_who_answers_a_trial_leaves_no_place_behind(four: Four, model: str) -> None:
    limited, tried = four.server(model, max_concurrent=5), four.server(model)
    tried.behave("refuse")
    async with four.asking() as client:
        deadline = time.monotonic() + 15
        while not await dropped(client, model):
            assert (await client.chat(model)).server == limited.server_id
            assert time.monotonic() < deadline
        tried.behave()
        while (await client.chat(model)).server != tried.server_id:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        rows = {row["server_id"]: row for row in (await explain(client, chat(model)))["order"]}
        assert rows[limited.server_id]["in_use"] == 0


async def test_a_trial_leaves_the_place_that_its_request_had_elsewhere(four: Four, model: str) -> None:
    """Nothing runs there while it waits, and others would wait for it in vain."""
    well, sick = four.server(model, max_concurrent=1), four.server(model)
    sick.behave("refuse")
    async with four.asking() as client:
        deadline = time.monotonic() + 15 + HELD_UP
        while not await dropped(client, model):
            assert (await client.chat(model)).server == well.server_id
            assert time.monotonic() < deadline
        sick.behave("hang")
        trial = asyncio.create_task(client.chat(model))
        while not [visit for visit in sick.log() if visit.method == "POST"]:
            if trial.done():
                trial = asyncio.create_task(client.chat(model))
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        while len(order := (await explain(client, chat(model)))["order"]) > 1:  # until all workers have heard of it
            assert not trial.done()
            await asyncio.sleep(0.1)
        assert not trial.done()
        [row] = order
        assert (row["server_id"], row["in_use"]) == (well.server_id, 0)
        assert (await trial).server == well.server_id


async def dropped(client: Asker, model: str) -> list[dict[str, str]]:
    told: list[dict[str, str]] = (await explain(client, chat(model)))["dropped"]
    return told


async def test_what_others_say_of_a_server_is_told_to_who_may_see_the_fleet(four: Four, model: str) -> None:
    """The words of a monitor name hosts and paths."""
    four.server(model)
    sick = four.server(model)
    admin = {"authorization": f"Bearer {four.citadel.admin_key}"}
    said = {"server_id": sick.server_id, "status": "unhealthy", "message": "no answer from db7.corp"}
    async with four.asking() as client:
        async with client.session.post("/webhooks/server_status", json=said, headers=admin) as answer:
            assert answer.status == 200
        await four.until_listed(sick, "unhealthy", 5)
        await asyncio.sleep(1 + HELD_UP)  # in which all workers have heard of it
        assert await dropped(client, model) == [{"server_id": sick.server_id, "reason": "unhealthy"}]
        async with client.session.post("/orchestration/route/explain", json=chat(model), headers=admin) as answer:
            [full] = (await answer.json())["dropped"]
        assert "db7.corp" in full["reason"]
        work = {"request_id": f"w-{model}", "model_required": model}
        async with client.session.post("/orchestration/workload/distribute", json=work) as answer:
            assert (await answer.json())["load_balancing_decision"]["dropped"] == {sick.server_id: "unhealthy"}


async def test_what_is_no_chat_request_is_refused(four: Four, model: str) -> None:
    four.server(model)
    async with four.asking() as client:
        assert (await explain(client, {"model": model}, 400))["error"]["param"] == "messages"
        assert (await explain(client, chat("nobody-has-it"), 404))["error"]["code"] == "model_not_found"
        client.session.headers.pop("authorization")
        await explain(client, chat(model), 401)


@pytest.mark.parametrize(
    ("plan", "taken", "expected"),
    [
        (Plan((A, B)), {"a": 1, "b": 0}, ("served", "a")),
        (Plan((A, B)), {"a": 2, "b": 1}, ("served", "b")),
        (Plan((A, UNLIMITED)), {"a": 2}, ("served", "c")),
        (Plan((A, B)), {"a": 2, "b": 3}, ("waits", None)),
        (Plan((), trial=A, retry_after=1), {}, ("tried", "a")),
        (Plan((), retry_after=1), {}, ("unavailable", None)),
        (Plan((), lacking="tools"), {}, ("refused", None)),
    ],
)
def test_the_outcome(plan: Plan, taken: dict[str, int], expected: tuple[str, str | None]) -> None:
    assert outcome_of(plan, taken) == expected
