"""Row 1: a backend is killed before the first byte of its answer."""

import asyncio
import time

import pytest

from tests.faults.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, Reply, body_of
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case
from tests.fleet.control import calls_of
from tests.held_up import HELD_UP

REFUSED_DELAY = 1.0 + HELD_UP
SILENT_DELAY = 3.0 + HELD_UP
EJECTED_WITHIN = 5.0 + HELD_UP
RATE = 50

FORMS: list[tuple[str, dict[str, bool]]] = [
    (CHAT, {}),
    (CHAT, {"stream": True}),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"stream": True}),
    (EMBEDDINGS, {}),
]
DEATHS = [
    "die request fin",
    "die request rst",
    "die head:5",
    "die head:40 rst",
    "die headers",
    "die headers rst",
    "die byte:1",
]


def _check_moved(case: Case, reply: Reply, second: str, within: float) -> None:
    assert reply.status == 200, reply.body
    assert reply.headers["x-citadel-server"] == second
    assert reply.headers["x-citadel-attempts"] == "2"
    assert reply.ended <= within
    [record] = case.citadel.records(reply.identity)
    attempts = record["attempts"]
    assert isinstance(attempts, list)
    assert len(attempts) == 2
    assert attempts[0]["outcome"] != "ok"
    assert attempts[1] == {**attempts[1], "server": second, "outcome": "ok"}


@pytest.mark.parametrize("death", DEATHS)
async def test_another_server_answers(case: Case, pair: Pair, client: Client, death: str) -> None:
    pair.first.behave(death)
    for path, options in FORMS:
        reply = await client.ask(path, body_of(path, pair.model, text=f"{case.prefix} {death}", **options))
        _check_moved(case, reply, pair.second.server_id, REFUSED_DELAY)
        if options.get("stream"):
            assert reply.events[-1] == "[DONE]"
            assert reply.finish_reasons == ["stop"]
    assert len(pair.second.calls()) == len(FORMS)


@pytest.mark.parametrize(("path", "options"), FORMS)
async def test_a_server_that_refuses_costs_one_attempt_and_no_more(
    case: Case, pair: Pair, client: Client, path: str, options: dict[str, bool]
) -> None:
    pair.first.behave("refuse")
    reply = await client.ask(path, body_of(path, pair.model, text=case.prefix, **options))
    _check_moved(case, reply, pair.second.server_id, REFUSED_DELAY)
    again = await client.ask(path, body_of(path, pair.model, text=f"{case.prefix} again", **options))
    assert again.headers["x-citadel-attempts"] == "1"


async def test_a_silent_host_costs_three_seconds_at_most_and_is_out_after_that(
    case: Case, pair: Pair, client: Client
) -> None:
    pair.first.behave("silent_host close")
    begun = time.monotonic()
    reply = await client.ask(CHAT, body_of(CHAT, pair.model))
    _check_moved(case, reply, pair.second.server_id, SILENT_DELAY)
    reply = await client.ask(CHAT, body_of(CHAT, pair.model))
    assert reply.headers["x-citadel-attempts"] == "1"
    assert time.monotonic() - begun < EJECTED_WITHIN


async def _none_fails(case: Case, servers: Servers, client: Client, model: str, count: int, kill_at: int) -> None:
    """`count` requests at a steady rate on two servers, one of which is killed under them."""
    dies, lives = servers(model), servers(model)
    begun = time.monotonic()

    async def ask(number: int) -> Reply:
        await asyncio.sleep(begun + number / RATE - time.monotonic())
        if number == kill_at:
            dies.behave("refuse")  # its port is nobody's from now on
        body = body_of(CHAT, model, text=f"number {number}", stream=number % 2 == 0)
        return await client.ask(CHAT, body)

    replies = await asyncio.gather(*map(ask, range(count)))
    assert [reply.status for reply in replies] == [200] * count
    assert not [reply for reply in replies if reply.broken or reply.stream_error]
    late = [reply.ended for reply in replies if reply.ended > REFUSED_DELAY]
    assert not late, f"{len(late)} requests were answered late, the worst after {max(late):.2f} s"
    after = [reply for number, reply in enumerate(replies) if number > kill_at + EJECTED_WITHIN * RATE]
    tried_in_vain = [reply for reply in after if reply.headers["x-citadel-attempts"] != "1"]
    assert len(tried_in_vain) <= count / RATE, "the dead server got more than a trial now and then"
    assert len(lives.calls()) >= count - kill_at


async def test_none_of_200_requests_fails_when_a_server_is_killed(
    case: Case, servers: Servers, client: Client, model: str
) -> None:
    await _none_fails(case, servers, client, model, 200, 75)


@pytest.mark.faults
async def test_none_of_1000_requests_fails_when_a_server_is_killed(
    case: Case, servers: Servers, client: Client, model: str
) -> None:
    await _none_fails(case, servers, client, model, 1000, 300)


@pytest.mark.parametrize("how", ["process", "in the act"])
async def test_the_process_itself_is_killed_under_running_requests(
    case: Case, servers: Servers, client: Client, model: str, how: str
) -> None:
    """SIGKILL while requests wait for their first byte: all of them are answered by the other server."""
    dies, lives = servers(model), servers(model)
    dies.behave("die request exit" if how == "in the act" else "hang")
    asked = [asyncio.create_task(client.ask(CHAT, body_of(CHAT, model, text=str(n)))) for n in range(20)]
    await lives.until(lambda log: len([seen for seen in log if seen.ended]) >= 10)
    if how == "process":
        await dies.until(lambda log: len(calls_of(log)) == 10)
        dies.kill()
    replies = await asyncio.gather(*asked)
    assert {reply.status for reply in replies} == {200}
    assert {reply.headers["x-citadel-server"] for reply in replies} == {lives.server_id}
    reply = await client.ask(CHAT, body_of(CHAT, model))
    assert reply.headers["x-citadel-server"] == lives.server_id
