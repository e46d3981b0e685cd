"""Row 18: a thousand equal requests in 100 ms, from two teams: two upstream calls. Leaders that leave or die."""

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, Reply, asking, body_of, request_head, wired
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import MEMORY_GROWTH, Case
from tests.fleet.control import Exchange, Fleet
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import SETTINGS, Instance, shared

FORMS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"temperature": 0}),
    (CHAT, {"temperature": 0, "stream": True}),
    (COMPLETIONS, {"seed": 7}),
    (COMPLETIONS, {"seed": 7, "stream": True}),
    (EMBEDDINGS, {}),
]
LEASE = 3.0
"""Seconds after which another worker takes a dead worker's lead."""


async def ask_at_once(clients: list[Client], path: str, body: dict[str, Any], count: int) -> list[Reply]:
    """So many equal requests within 100 ms, the clients in turn."""
    begun = time.monotonic()

    async def ask(number: int) -> Reply:
        await asyncio.sleep(begun + 0.1 * number / count - time.monotonic())
        return await clients[number % len(clients)].ask(path, body)

    return list(await asyncio.gather(*map(ask, range(count))))


def calls_of(*servers: Fleet) -> list[Exchange]:
    """What clients had these servers do: discovery asks them too."""
    return [one for server in servers for one in server.log() if one.method == "POST"]


def check_shared(replies: list[Reply]) -> None:
    """All have the same good answer."""
    assert {reply.status for reply in replies} == {200}
    assert not [reply for reply in replies if reply.stream_cut or reply.broken]
    first = replies[0]
    if first.body.startswith(b"data:"):
        assert {reply.text for reply in replies} == {first.text}
        assert {reply.events[-1] for reply in replies} == {"[DONE]"}
    else:  # usage left out: a batch of embeddings that were all there costs nothing
        assert all(content(reply) == content(first) for reply in replies)


def content(reply: Reply) -> Any:
    """What an answer says."""
    whole = reply.json()
    return whole.get("data") or whole["choices"]


@pytest.mark.parametrize(("path", "options"), FORMS)
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.faults)])
async def test_one_call_a_team(case: Case, pair: Pair, path: str, options: dict[str, Any], count: int) -> None:
    pair.first.behave("slow_start 300")
    worker = psutil.Process(case.citadel.worker)
    if count == 1000:  # what so many connections take of the heap for the first time stays there
        async with asking(case) as crowd:
            await ask_at_once([crowd], path, body_of(path, pair.model, text=f"before {case.prefix}", **options), count)
        pair.first.clear()
        case.check_memory = False
    memory = worker.memory_info().rss
    async with asking(case) as one, asking(case) as other:
        body = body_of(path, pair.model, text=case.prefix, **options)
        replies = await ask_at_once([one, other], path, body, count)
        check_shared(replies)
        calls = calls_of(pair.first, pair.second)
        assert len(calls) == 2, "not one call for each team"
        assert len({seen.headers["x-request-id"].split("-")[2] for seen in calls}) == 2
    said = [reply.headers["x-citadel-cache"] for reply in replies]
    assert said.count("miss") == 2
    assert set(said) <= {"miss", "coalesced", "hit"}
    assert worker.memory_info().rss < memory * MEMORY_GROWTH


async def test_a_stream_and_a_plain_answer_are_one_request(case: Case, pair: Pair, client: Client) -> None:
    pair.first.behave("slow_start 1000")
    plain = body_of(CHAT, pair.model, text=case.prefix, temperature=0)
    asked = [client.ask(CHAT, {**plain, "stream": number % 2 == 0}) for number in range(20)]
    replies = await asyncio.gather(*asked)
    assert {reply.status for reply in replies} == {200}
    assert len({reply.text for reply in replies}) == 1
    assert len(calls_of(pair.first)) == 1


@pytest.mark.parametrize(("path", "options"), FORMS)
async def test_the_leaders_client_leaves_and_one_follower_takes_over(
    case: Case, pair: Pair, client: Client, path: str, options: dict[str, Any]
) -> None:
    pair.first.behave("hang", next=1)
    body = body_of(path, pair.model, text=case.prefix, **options)
    async with wired(case.citadel.url) as leader:
        data = json.dumps(body).encode()
        headers = {"authorization": f"Bearer {client.key}", "x-request-id": client.identity()}
        await leader.send(request_head(path, {**headers, "content-length": str(len(data))}) + data)
        await pair.first.until(lambda log: [seen for seen in log if seen.read_at])
        followers = [asyncio.create_task(client.ask(path, body)) for _ in range(50)]
        await asyncio.sleep(0.3)  # all of them follow
        assert not [follower for follower in followers if follower.done()]
        assert len(calls_of(pair.first)) == 1
        leader.leave()
        replies = await asyncio.wait_for(asyncio.gather(*followers), 2.0 + HELD_UP)
    check_shared(list(replies))
    calls = calls_of(pair.first, pair.second)
    assert sorted(seen.ended for seen in calls) == ["client_closed", "completed"]


async def test_plain_answers_of_a_stream_too_large_to_keep_are_asked_for_at_once(
    case: Case, servers: Servers, client: Client, model: str
) -> None:
    """1.6 MB, a second long: who reads along goes on; who waits for the whole no longer does once it is too large."""
    server = servers(model, tokens=12_000)
    server.behave("slow_chunks 25; together 300")
    body = body_of(CHAT, model, text=case.prefix, temperature=0, stream=True)
    streams = [asyncio.create_task(client.ask(CHAT, body)) for _ in range(4)]
    await server.until(lambda log: [seen for seen in log if seen.chunks_sent])
    plain = await asyncio.gather(*(client.ask(CHAT, {**body, "stream": False}) for _ in range(4)))
    replies = await asyncio.gather(*streams)
    check_shared(replies)
    check_shared(list(plain))
    assert len(replies[0].body) > 1024 * 1024
    assert plain[0].text == replies[0].text
    first, *others = sorted(calls_of(server), key=lambda seen: seen.begun_at)
    assert len(others) == 4
    assert first.ended_at is not None
    assert all(seen.begun_at < first.ended_at for seen in others), "one after the other"
    assert others[-1].begun_at - others[0].begun_at < 0.5


async def test_a_follower_who_leaves_takes_nobody_along(case: Case, pair: Pair, client: Client) -> None:
    pair.first.behave("slow_start 500")
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0)
    leader = asyncio.create_task(client.ask(CHAT, body))
    await pair.first.until(lambda log: [seen for seen in log if seen.read_at])
    async with wired(case.citadel.url) as follower:
        data = json.dumps(body).encode()
        headers = {"authorization": f"Bearer {client.key}", "x-request-id": client.identity()}
        await follower.send(request_head(CHAT, {**headers, "content-length": str(len(data))}) + data)
        await asyncio.sleep(0.1)
        follower.leave()
    assert (await leader).status == 200
    assert len(calls_of(pair.first)) == 1


@pytest.mark.parametrize(("path", "options"), FORMS)
async def test_an_error_that_is_the_requests_own_fault_is_everybodys(
    case: Case, pair: Pair, client: Client, path: str, options: dict[str, Any]
) -> None:
    pair.first.behave("slow_start 1000; error problem=blame")
    body = body_of(path, pair.model, text=case.prefix, **options)
    replies = await ask_at_once([client], path, body, 50)
    assert {reply.status for reply in replies} == {400}
    assert len(calls_of(pair.first)) == 1


async def test_servers_that_fail_are_not_asked_by_every_follower(case: Case, pair: Pair, client: Client) -> None:
    """One leader fails on two servers; the next, who is suspected by then, on one; then all hear of it."""
    for server in (pair.first, pair.second):
        server.behave("slow_start 200; error 500")
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0)
    replies = await ask_at_once([client], CHAT, body, 50)
    assert {reply.status for reply in replies} == {502}
    asked = len(calls_of(pair.first, pair.second))
    assert 3 <= asked <= 5, "one that comes when all have heard of it asks anew"


async def test_a_leaders_own_limit_is_not_its_followers(case: Case, pair: Pair) -> None:
    """Two keys of one team: what one may not, the other may, whoever comes first."""
    team = f"team-{case.prefix}"
    full, free = (case.keep(case.citadel.key(team, concurrent=concurrent)) for concurrent in (1, 100_000))
    pair.first.behave("slow_start 1000", body="busy")
    async with asking(case, full) as limited, asking(case, free) as unlimited:
        busy = asyncio.create_task(limited.ask(CHAT, body_of(CHAT, pair.model, text="busy")))
        await pair.first.until(lambda log: [seen for seen in log if seen.read_at])
        for number in range(10):
            body = body_of(CHAT, pair.model, text=f"{case.prefix} {number}", temperature=0)
            asked = [client.ask(CHAT, body) for client in (limited, limited, limited, unlimited, unlimited)]
            replies = await asyncio.gather(*asked)
            assert {reply.status for reply in replies[3:]} == {200}
            assert {reply.status for reply in replies[:3]} <= {200, 429}
        assert (await busy).status == 200


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A Citadel of two workers, and a server there."""
    base = tmp_path_factory.getbasetemp()
    folder = Path(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-workers"
    folder.mkdir(exist_ok=True)
    settings = {**SETTINGS, "CITADEL_DEMO_FLEET": "0", "CITADEL_SERVER__WORKERS": "2"}
    with shared(folder, settings) as instance, Elsewhere.on(instance) as elsewhere:
        yield elsewhere


def workers(instance: Instance) -> list[psutil.Process]:
    return [psutil.Process(int(path.read_text())) for path in sorted(instance.home.glob("run/web-*.pid"))]


def links(worker: psutil.Process, port: int) -> int:
    """Connections between this worker and that port, its own or another's."""
    found = worker.net_connections("inet")
    return len([link for link in found if link.raddr and port in (link.raddr.port, link.laddr.port)])


@pytest.mark.faults
@pytest.mark.parametrize(("path", "options"), FORMS)
async def test_two_workers_make_one_call_a_team(two_workers: Elsewhere, path: str, options: dict[str, Any]) -> None:
    elsewhere, text = two_workers, secrets.token_hex(8)
    elsewhere.server.clear()
    elsewhere.server.behave("slow_start 500")
    body = body_of(path, elsewhere.model, text=text, **options)
    async with elsewhere.asking() as one, elsewhere.asking(elsewhere.key()) as other:
        asked = [asyncio.create_task((one, other)[number % 2].post(body, path)) for number in range(1000)]
        await elsewhere.server.until(lambda log: log)
        own_port = int(elsewhere.citadel.url.rpartition(":")[2])
        assert all(links(worker, own_port) for worker in workers(elsewhere.citadel)), "one worker has all of them"
        replies = await asyncio.gather(*asked)
    assert {reply.status for reply in replies} == {200}
    assert len(calls_of(elsewhere.server)) == 2


@pytest.mark.faults
@pytest.mark.parametrize(("path", "options"), FORMS[:2])
async def test_the_leaders_worker_is_killed_and_one_follower_takes_over(
    two_workers: Elsewhere, path: str, options: dict[str, Any]
) -> None:
    elsewhere, text = two_workers, secrets.token_hex(8)
    elsewhere.server.clear()
    elsewhere.server.behave()
    elsewhere.server.behave("hang", next=1)
    body = body_of(path, elsewhere.model, text=text, **options)
    async with elsewhere.asking() as client:
        leader = asyncio.create_task(client.post(body, path))
        await elsewhere.server.until(lambda log: [seen for seen in log if seen.read_at])
        [seen] = calls_of(elsewhere.server)
        [peer] = [visit.peer for visit in elsewhere.server.connections() if visit.id == seen.connection]
        [victim] = [worker for worker in workers(elsewhere.citadel) if links(worker, int(peer.rpartition(":")[2]))]
        [survivor] = [worker for worker in workers(elsewhere.citadel) if worker.pid != victim.pid]
        followers = [asyncio.create_task(client.post(body, path)) for _ in range(100)]
        for _ in range(100):  # until all of them follow, some in the other worker
            await asyncio.sleep(0.5)
            if links(survivor, int(elsewhere.citadel.url.rpartition(":")[2])):
                break
            followers.append(asyncio.create_task(client.post(body, path)))
        assert len(calls_of(elsewhere.server)) == 1
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        outcomes = await asyncio.gather(leader, *followers, return_exceptions=True)
        taken = time.monotonic() - killed
    replies = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert replies, "the other worker had none of the followers"
    assert {reply.status for reply in replies} == {200}
    assert len(calls_of(elsewhere.server)) == 2
    assert taken < LEASE + 1.0
