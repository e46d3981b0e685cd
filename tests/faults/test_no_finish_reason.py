"""Row 15: a stream that ends without `finish_reason` was cut short, and is never a success."""

from typing import Any

import pytest

from tests.faults.client import CHAT, COMPLETIONS, Client, body_of
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case

STREAMS = [CHAT, COMPLETIONS]
CHUNKS = 8
WITHOUT = [
    "no_finish",
    "no_finish done=false",
    "slow_chunks 5; no_finish",
    "lines crlf; no_finish",
    "split 7; no_finish",
]
FRAMINGS = [
    "",
    *(
        pytest.param(text, marks=pytest.mark.faults)
        for text in ("framing close; ", "framing length; ", "together 100; ")
    ),
]


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("behaviour", WITHOUT)
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_it_ends_as_one_that_was_broken_off(
    case: Case, pair: Pair, client: Client, path: str, behaviour: str, framing: str
) -> None:
    pair.first.behave(framing + behaviour)
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    assert reply.status == 200
    assert reply.stream_error is not None
    assert reply.stream_error["code"] == "stream_interrupted"
    assert reply.events[-1].startswith('{"error"')
    assert "[DONE]" not in reply.events
    assert reply.finish_reasons == []
    assert not pair.second.calls(), "a second server was asked after the client had content"
    [record] = case.citadel.records(reply.identity)
    assert record["outcome"] == "stream_interrupted"
    assert record["completion_tokens"] == CHUNKS


@pytest.mark.parametrize("path", STREAMS)
async def test_one_choice_of_two_does_not_make_it_whole(pair: Pair, client: Client, path: str) -> None:
    """Two choices, and the server breaks off in good order when the first has ended."""
    whole = await client.ask(path, body_of(path, pair.model, stream=True, n=2))
    assert whole.finish_reasons == ["stop", "stop"]
    pair.first.behave("no_finish")
    reply = await client.ask(path, body_of(path, pair.model, stream=True, n=2))
    assert reply.stream_error is not None
    assert "[DONE]" not in reply.events


@pytest.mark.parametrize("path", STREAMS)
async def test_a_server_that_ignores_n_answers_well(
    case: Case, servers: Servers, client: Client, model: str, path: str
) -> None:
    """Ollama gives one choice however many are asked for, and says `[DONE]` after it."""
    server = servers(model, kind="ollama")
    for number in range(6):  # five failures would take it out
        reply = await client.ask(path, body_of(path, model, text=str(number), stream=True, n=3))
        assert reply.stream_error is None
        assert reply.finish_reasons == ["stop"]
        assert reply.events[-1] == "[DONE]"
        [record] = case.citadel.records(reply.identity)
        assert record["outcome"] == "ok"
    assert len(server.calls()) == 6


@pytest.mark.parametrize("path", STREAMS)
async def test_an_empty_finish_reason_in_each_chunk_is_no_end(pair: Pair, client: Client, path: str) -> None:
    pair.first.behave("empty_finish; no_finish done=false")
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    assert reply.stream_error is not None
    assert reply.stream_error["code"] == "stream_interrupted"
    assert "[DONE]" not in reply.events
    pair.first.behave("empty_finish")
    whole = await client.ask(path, body_of(path, pair.model, stream=True))
    assert whole.stream_error is None
    assert whole.finish_reasons[-1] == "stop"


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
async def test_usage_is_no_end(pair: Pair, client: Client, path: str, options: dict[str, Any]) -> None:
    """The server tells the usage, which comes after the end as a rule, and says `[DONE]`."""
    pair.first.behave("usage last; no_finish")
    reply = await client.ask(path, body_of(path, pair.model, stream=True, **options))
    assert reply.stream_error is not None
    assert reply.stream_error["code"] == "stream_interrupted"


@pytest.mark.parametrize("path", STREAMS)
async def test_nothing_of_it_is_cached(case: Case, pair: Pair, client: Client, path: str) -> None:
    request = body_of(path, pair.model, text=case.prefix, temperature=0, stream=True)
    pair.first.behave("no_finish", next=1)
    assert (await client.ask(path, request)).stream_error is not None
    second = await client.ask(path, request)
    assert second.headers["x-citadel-cache"] == "miss"
    assert second.finish_reasons == ["stop"]
    third = await client.ask(path, request)
    assert third.headers["x-citadel-cache"] == "hit"


async def test_it_is_held_against_the_server(servers: Servers, client: Client, model: str) -> None:
    breaks, holds = servers(model, weight=1000), servers(model)
    breaks.behave("no_finish")
    for number in range(5):
        assert (await client.ask(CHAT, body_of(CHAT, model, text=str(number), stream=True))).stream_error is not None
    reply = await client.ask(CHAT, body_of(CHAT, model))
    assert reply.headers["x-citadel-server"] == holds.server_id


@pytest.mark.parametrize("path", STREAMS)
async def test_an_end_without_done_is_one(pair: Pair, client: Client, path: str) -> None:
    """`finish_reason` is what counts: its `[DONE]` the client gets from us."""
    pair.first.behave("no_done")
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    assert reply.stream_error is None
    assert reply.finish_reasons == ["stop"]
    assert reply.events[-1] == "[DONE]"
