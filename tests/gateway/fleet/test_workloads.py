"""Workloads: a server chosen and a place held there, whatever of the four workers is asked."""

import asyncio
import os
import secrets
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest

from tests.fleet.control import Fleet
from tests.gateway.fleet.conftest import Asker, Four, most_at_once
from tests.gateway.fleet.test_places import all_workers
from tests.held_up import HELD_UP

LEASE = 3.0
"""Seconds, by the fixture's settings."""


@dataclass
class Held:
    """An answer about a workload."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def server(self) -> str:
        return str(self.body["assigned_server"])

    @property
    def id(self) -> str:
        return str(self.body["request_id"])

    @property
    def header(self) -> dict[str, str]:
        return {"x-citadel-workload": self.id}


async def hold(client: Asker, model: str, request_id: str = "", **more: Any) -> Held:
    body = {"request_id": request_id or f"w-{secrets.token_hex(6)}", "model_required": model, **more}
    async with client.session.post("/orchestration/workload/distribute", json=body) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Held(answer.status, await answer.json(), headers)


async def release(client: Asker, request_id: str, key: str = "", query: str = "") -> tuple[int, dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with client.session.delete(f"/orchestration/workload/{request_id}{query}", headers=headers) as answer:
        return answer.status, await answer.json()


def operate(four: Four, server: Fleet, what: str) -> None:
    headers = {"authorization": f"Bearer {four.citadel.admin_key}"}
    answer = httpx.post(f"{four.citadel.url}/orchestration/servers/{server.server_id}/{what}", headers=headers)
    assert answer.status_code == 200, answer.text
    four.citadel.settle()


async def test_a_place_is_held_until_it_is_released(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1)
    async with four.asking() as client, four.asking() as other:
        held = await hold(client, model)
        assert (held.status, held.server, held.body["endpoint"]) == (200, server.server_id, "/v1/chat/completions")
        assert held.body["load_balancing_decision"]["order"] == [server.server_id]
        done, ends = (datetime.fromisoformat(held.body[name]) for name in ("estimated_completion", "lease_expires"))
        assert 0 < (ends - datetime.now(ends.tzinfo)).total_seconds() <= LEASE
        assert done > datetime.now(done.tzinfo)
        begun = time.monotonic()
        full = await hold(other, model)
        assert (full.status, full.body["error"]["code"]) == (503, "no_place")
        assert int(full.headers["retry-after"]) >= 1
        assert time.monotonic() - begun < 0.5 + HELD_UP
        waiting = asyncio.create_task(other.chat(model))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "the place is not free"
        assert (await release(client, held.id))[0] == 200
        reply = await waiting
    assert reply.status == 200
    assert 250 < int(reply.headers["x-citadel-queue-ms"]) < 1000, "it was handed over at once"


async def test_the_request_that_names_it_uses_it_once(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1, behave=["slow_start 200"])
    async with four.asking() as client:
        held = await hold(client, model)
        using = asyncio.create_task(client.chat(model, "first", held.header))
        await asyncio.sleep(0.1)
        assert (await hold(client, model)).status == 503, "it has the place now"
        reply = await using
        assert (reply.status, reply.server) == (200, server.server_id)
        assert "x-citadel-queue-ms" not in reply.headers
        assert (await release(client, held.id))[0] == 404
        again = await hold(client, model)
        assert again.status == 200, "its place is free"
        waiting = asyncio.create_task(client.chat(model, "second", held.header))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "a used one is worth nothing"
        await release(client, again.id)
        assert (await waiting).status == 200
    assert most_at_once(server) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_its_request_goes_to_its_server_and_the_record_says_so(four: Four, model: str, stream: bool) -> None:
    servers = [four.server(model, weight=weight) for weight in (1, 9)]
    async with four.asking() as client:
        for _ in range(4):
            held = await hold(client, model, preferred_servers=["nowhere", servers[0].server_id])
            assert held.server == servers[0].server_id
            assert held.body["load_balancing_decision"]["preferred"] == [servers[0].server_id]
            reply = await client.chat(model, headers=held.header, stream=stream)
            assert (reply.status, reply.server) == (200, servers[0].server_id)
    [record] = four.citadel.records(reply.headers["x-request-id"])
    assert record["routing"]["workload"] == held.id  # type: ignore[index]


async def test_places_are_counted_exactly_over_all_workers(four: Four, model: str) -> None:
    servers = [four.server(model, max_concurrent=2, behave=["slow_start 300"]) for _ in range(2)]
    async with four.asking() as client:
        found = await asyncio.gather(*(hold(client, model) for _ in range(12)))
        held = [one for one in found if one.status == 200]
        assert sorted(one.server for one in held) == sorted(server.server_id for server in servers for _ in "12")
        replies = await asyncio.gather(*(client.chat(model, headers=one.header) for one in held for _ in "12"))
    assert {reply.status for reply in replies} == {200}
    assert [most_at_once(server) for server in servers] == [2, 2]


async def test_the_lease_ends_and_who_waits_gets_the_place(four: Four, model: str) -> None:
    four.server(model, max_concurrent=1)
    async with four.asking() as client:
        held = await hold(client, model)
        begun = time.monotonic()
        reply = await client.chat(model)
        assert reply.status == 200
        assert LEASE - 0.5 < time.monotonic() - begun < LEASE + 2 + HELD_UP
        assert (await release(client, held.id))[0] == 404
        assert (await client.chat(model, headers=held.header)).status == 200, "a request as any other"


async def test_it_outlives_the_workers(four: Four, model: str) -> None:
    four.server(model, max_concurrent=1)
    async with four.asking() as client:
        held = await hold(client, model)
        for number in (1, 2, 3):
            os.kill(int((four.citadel.home / "run" / f"web-{number}.pid").read_text()), signal.SIGKILL)
        for _ in range(20):
            try:
                again = await hold(client, model)
            except (OSError, httpx.HTTPError):
                continue
            assert again.status == 503
            break
        else:
            raise AssertionError("the fourth worker was never met")
        await asyncio.sleep(0.2)
        reply = await client.chat(model, headers=held.header)
        assert reply.status == 200
    await all_workers(four)


async def test_asked_again_it_is_the_same_and_only_for_whom_holds_it(four: Four, model: str) -> None:
    four.server(model, max_concurrent=2)
    four.server(model, max_concurrent=2)
    another = f"{model}-other"
    four.server(another)
    async with four.asking() as client, four.asking() as other:
        held = await hold(client, model)
        for _ in range(5):
            assert (await hold(client, model, held.id)).body == held.body
        conflict = await hold(client, another, held.id)
        assert (conflict.status, conflict.body["error"]["param"]) == (409, "request_id")
        assert (await release(other, held.id))[0] == 404
        assert (await other.chat(model, headers=held.header)).status == 200
        assert (await release(client, held.id, four.citadel.admin_key))[0] == 200, "operators may"
        assert (await release(client, held.id))[0] == 404


async def test_an_id_is_the_key_s_own(four: Four, model: str) -> None:
    """Two use the same at once, for one model or for two, and neither learns of the other."""
    server, another = four.server(model, max_concurrent=2), f"{model}-other"
    four.server(another)
    keys = [four.elsewhere.key(concurrent=0) for _ in "123"]
    async with four.asking(keys[0]) as one, four.asking(keys[1]) as two, four.asking(keys[2]) as three:
        held = await hold(one, model)
        assert [(await hold(client, name, held.id)).status for client, name in ((two, model), (three, another))] == [
            200,
            200,
        ]
        assert (await hold(one, model)).status == 503, "each holds a place"
        admin = four.citadel.admin_key
        status, told = await release(one, held.id, admin)
        assert (status, told["error"]["param"]) == (409, "key_id")
        ids = sorted(key.split("_")[1] for key in keys)
        assert ", ".join(ids) in told["error"]["message"]
        assert (await release(two, held.id, query=f"?key_id={keys[0].split('_')[1]}"))[0] == 403
        assert (await release(two, held.id, admin, f"?key_id={keys[2].split('_')[1]}"))[0] == 200
        assert (await release(three, held.id))[0] == 404
        assert (await release(two, held.id))[0] == 200
        assert (await hold(one, model, held.id)).body == held.body, "the first one's is as it was"
        reply = await one.chat(model, headers=held.header)
        assert (reply.status, reply.server) == (200, server.server_id)
        assert (await release(one, held.id))[0] == 404


async def test_it_moves_when_its_server_is_drained(four: Four, model: str) -> None:
    first, second = (four.server(model, max_concurrent=1) for _ in range(2))
    async with four.asking() as client:
        held = await hold(client, model, preferred_servers=[first.server_id])
        assert held.server == first.server_id
        operate(four, first, "drain")
        deadline = time.monotonic() + 2.5
        while (full := await hold(client, model)).status == 200:
            await release(client, full.id)
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        moved = await hold(client, model, held.id)
        assert moved.server == second.server_id
        assert moved.body["lease_expires"] == held.body["lease_expires"]
        assert moved.body["load_balancing_decision"]["moved_from"] == first.server_id
        reply = await client.chat(model, headers=held.header)
        assert (reply.status, reply.server) == (200, second.server_id)
        operate(four, first, "enable")
        assert (await hold(client, model, preferred_servers=[first.server_id])).server == first.server_id


@pytest.mark.parametrize("how", ["removed", "without the model"])
async def test_it_moves_when_its_server_is_gone_or_no_longer_holds_the_model(four: Four, model: str, how: str) -> None:
    """With what it takes."""
    first, second = four.server(model, max_concurrent=3), four.server(model, max_concurrent=3)
    other = f"{model}-other"
    four.server(other)
    async with four.asking() as client:
        stays = await hold(client, other)
        works = [await hold(client, model, preferred_servers=[first.server_id], estimated_complexity=9) for _ in "123"]
        assert {held.server for held in works} == {first.server_id}
        with psycopg.connect(four.citadel.database_url) as connection:
            connection.execute(
                "DELETE FROM orchestration_servedmodel m USING orchestration_server s "
                "WHERE s.id = m.server_id AND s.server_id = %s",
                (first.server_id,),
            )
            if how == "removed":
                connection.execute("DELETE FROM orchestration_server WHERE server_id = %s", (first.server_id,))
        four.citadel.settle()
        deadline = time.monotonic() + 2 + HELD_UP
        while (full := await hold(client, model)).status == 200:
            await release(client, full.id)
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        for held in works:
            moved = await hold(client, model, held.id)
            assert moved.body["load_balancing_decision"]["moved_from"] == first.server_id
            assert moved.server == second.server_id
            assert moved.body["estimated_completion"] > held.body["estimated_completion"]
        assert (await hold(client, other, stays.id)).body == stays.body


async def test_used_when_its_server_is_out_it_is_a_request_as_any_other(four: Four, model: str) -> None:
    first, second = four.server(model, max_concurrent=1), four.server(model)
    async with four.asking() as client:
        held = await hold(client, model, preferred_servers=[first.server_id])
        first.behave("refuse")
        reply = await client.chat(model, headers=held.header)
        assert (reply.status, reply.server) == (200, second.server_id)


async def test_a_key_holds_no_more_than_it_may_run_at_once(four: Four, model: str) -> None:
    four.server(model)
    headers = {"authorization": f"Bearer {four.elsewhere.key(concurrent=2)}"}
    async with four.asking() as client:
        client.session.headers.update(headers)
        held = [await hold(client, model) for _ in range(3)]
        assert [one.status for one in held] == [200, 200, 429]
        assert held[2].body["error"]["code"] == "workload_limit_exceeded"
        assert 1 <= int(held[2].headers["retry-after"]) <= LEASE
        assert (await client.chat(model, headers=held[0].header)).status == 200
        assert (await hold(client, model)).status == 200


async def test_what_is_held_and_what_runs_are_counted_together_by_all_limits(four: Four, model: str) -> None:
    """Here by that of a class, which allows a key two at once."""
    name = f"mixtral-{model}"
    four.server(name, behave=["slow_start 700"])
    key = four.elsewhere.command("key", "create", "--team", model, "--name", "plain").strip()
    async with four.asking(key) as client:
        found = await asyncio.gather(*(hold(client, name) for _ in range(5)))
        held, refused = ([one for one in found if one.status == status] for status in (200, 429))
        assert (len(held), len(refused)) == (2, 3)
        assert refused[0].body["error"]["code"] == "workload_limit_exceeded"
        assert "This key, for heavyweight models, has as many" in refused[0].body["error"]["message"]
        beside = await client.chat(name)
        assert (beside.status, beside.code) == (429, "concurrency_limit_exceeded"), "what is held counts"
        using = [asyncio.create_task(client.chat(name, one.id, one.header)) for one in held]
        await asyncio.sleep(0.3)
        assert (await hold(client, name)).status == 429, "what runs counts"
        assert [reply.status for reply in await asyncio.gather(*using)] == [200, 200]
        assert (await hold(client, name)).status == 200


async def test_a_workload_of_another_key_or_model_counts_beside_a_request(four: Four, model: str) -> None:
    """Whatever the request names."""
    other = f"{model}-other"
    four.server(model)
    four.server(other)
    async with four.asking(four.elsewhere.key(concurrent=1)) as client:
        held = await hold(client, model)
        refused = await client.chat(other, headers=held.header)
        assert (refused.status, refused.code) == (429, "concurrency_limit_exceeded")
        assert (await client.chat(model, headers=held.header)).status == 200
        assert (await client.chat(other, headers=held.header)).status == 200, "it is used"


async def test_an_answer_out_of_the_cache_gives_the_place_back(four: Four, model: str) -> None:
    four.server(model, max_concurrent=1)
    async with four.asking() as client:
        assert (await client.chat(model, temperature=0)).status == 200
        held = await hold(client, model)
        reply = await client.chat(model, headers=held.header, temperature=0)
        assert reply.headers["x-citadel-cache"] == "hit"
        await asyncio.sleep(0.1)
        assert (await hold(client, model)).status == 200


async def test_an_answer_for_another_model_out_of_the_cache_leaves_it(four: Four, model: str) -> None:
    """As one of a server does."""
    other = f"{model}-other"
    four.server(model, max_concurrent=1)
    four.server(other)
    async with four.asking() as client:
        held = await hold(client, model)
        for cache in ("miss", "hit"):
            reply = await client.chat(other, headers=held.header, temperature=0)
            assert reply.headers["x-citadel-cache"] == cache
            await asyncio.sleep(0.1)
            assert (await hold(client, model)).status == 503
        assert (await release(client, held.id))[0] == 200


async def test_who_leaves_frees_it(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1)
    server.behave("hang")
    async with four.asking() as client:
        held = await hold(client, model)
        gone = asyncio.create_task(client.chat(model, headers=held.header))
        await asyncio.sleep(0.2)
        gone.cancel()
        deadline = time.monotonic() + min(1 + HELD_UP, 2)
        while (await hold(client, model)).status != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_the_more_complex_the_later_and_embeddings_have_their_own_address(four: Four, model: str) -> None:
    name = f"{model}-embed"
    four.server(name)
    async with four.asking() as client:
        done = []
        for complexity in ("low", 1, "high", 30.5):
            held = await hold(client, name, estimated_complexity=complexity, priority="critical", client_info={"a": 1})
            assert (held.status, held.body["endpoint"]) == (200, "/v1/embeddings")
            done.append(held.body["estimated_completion"])
        assert done == sorted(done)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"model_required": None}, "model_required"),
        ({"priority": "urgent"}, "priority"),
        ({"estimated_complexity": -1}, "estimated_complexity"),
        ({"estimated_complexity": "hard"}, "estimated_complexity"),
        ({"preferred_servers": "s"}, "preferred_servers"),
        ({"client_info": "me"}, "client_info"),
    ],
)
async def test_what_is_wrong_is_said(four: Four, model: str, wrong: dict[str, Any], param: str) -> None:
    async with four.asking() as client:
        body = {"request_id": "w-1", "model_required": model, **wrong}
        async with client.session.post("/orchestration/workload/distribute", json=body) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == param


async def test_a_model_that_is_not_there_and_a_stranger_are_told_so(four: Four, model: str) -> None:
    async with four.asking() as client:
        unknown = await hold(client, model)
        assert (unknown.status, unknown.body["error"]["param"]) == (404, "model_required")
        client.session.headers.pop("authorization")
        assert (await hold(client, model)).status == 401
        assert (await release(client, "w-1"))[0] == 401
