"""Each request leaves one record, with what happened in it."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, chat, streamed
from tests.instance import Instance

Start = Callable[..., Fleet]


@pytest.fixture
def client(http: aiohttp.ClientSession) -> Client:
    return Client(http)


def record_of(citadel: Instance, identity: str) -> dict[str, Any]:
    """The only one."""
    [record] = citadel.records(identity)
    return dict(record)


@pytest.mark.parametrize(
    ("path", "door", "more"),
    [
        (CHAT, "chat", {"messages": [{"role": "user", "content": "Hello"}]}),
        (CHAT, "chat", {"messages": [{"role": "user", "content": "Hello"}], "stream": True}),
        (COMPLETIONS, "completions", {"prompt": "Hello"}),
        (COMPLETIONS, "completions", {"prompt": "Hello", "stream": True}),
        (EMBEDDINGS, "embeddings", {"input": "Hello"}),
    ],
)
async def test_who_what_where_and_how_long(
    citadel: Instance, fleet: Start, model: str, client: Client, path: str, door: str, more: dict[str, Any]
) -> None:
    server, team = fleet(model, tokens=6), f"team-{model}"
    server.behave("slow_start 50")
    key, body = citadel.key(team), {"model": model, **more}
    begun = datetime.now(UTC)
    answer = await client.post(body, path, key=key)
    record = record_of(citadel, answer.identity)
    assert begun <= record["at"] <= datetime.now(UTC)
    [seen] = server.log()
    tokens = 0 if path == EMBEDDINGS else 6
    expected = {
        "team": team,
        "key_id": key.split("_")[1],
        "door": door,
        "model": model,
        "server": server.server_id,
        "status": 200,
        "outcome": "ok",
        "stream": bool(more.get("stream")),
        "cache": "miss" if path == EMBEDDINGS else "bypass",
        "completion_tokens": tokens,
        "request_bytes": len(str(body).replace("'", '"').replace("True", "true")),
        "answer_bytes": len(answer.body),
    }
    assert {name: record[name] for name in expected} == expected
    assert record["prompt_tokens"] > 0
    assert 50 <= record["first_byte_ms"] <= record["total_ms"] < 10_000
    [attempt] = record["attempts"]
    assert (attempt["server"], attempt["outcome"]) == (server.server_id, "ok")
    assert 50 <= attempt["ms"] <= record["total_ms"]
    assert seen.headers["x-request-id"] == answer.identity


async def test_each_attempt_stands_there_with_its_reason(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    bad, good = fleet(model, weight=1000), fleet(model)
    bad.behave("error 500")
    answer = await client.post(chat(model))
    record = record_of(citadel, answer.identity)
    outcomes = [(attempt["server"], attempt["outcome"]) for attempt in record["attempts"]]
    assert outcomes == [(bad.server_id, "status_500"), (good.server_id, "ok")]
    assert (record["server"], record["status"], record["outcome"]) == (good.server_id, 200, "ok")


async def test_a_header_that_is_no_text_holds_no_record_up(citadel: Instance, model: str, client: Client) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: \xff\xfebad\r\ncontent-length: 2\r\n\r\n{}"
    async with await _answering(answer) as server:
        port = server.sockets[0].getsockname()[1]
        with citadel.registered(f"http://127.0.0.1:{port}", [model]):
            replies = [await client.post(chat(model)) for _ in range(2)]
    for reply in replies:
        assert (reply.status, reply.code) == (502, "upstream_failed")
        record = record_of(citadel, reply.identity)
        assert (record["status"], record["outcome"]) == (502, "upstream_failed")
        assert record["attempts"][0]["outcome"].startswith("malformed")


async def _answering(answer: bytes) -> asyncio.Server:
    """A server that answers everything with the same bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1")


@pytest.mark.parametrize(
    ("behaviour", "body", "status", "outcome"),
    [
        ("error 400", chat, 400, "invalid_value"),
        ("error 429", chat, 429, "server_busy"),
        ("error 500", chat, 502, "upstream_failed"),
        ("error 503", chat, 503, "server_unavailable"),
        ("error 504", chat, 504, "upstream_timeout"),
        ("die chunk:3", streamed, 200, "stream_interrupted"),
    ],
)
async def test_failures_have_their_status_and_code(
    citadel: Instance,
    fleet: Start,
    model: str,
    client: Client,
    behaviour: str,
    body: Callable[..., dict[str, Any]],
    status: int,
    outcome: str,
) -> None:
    fleet(model).behave(behaviour)
    answer = await client.post(body(model), connection="close")
    record = record_of(citadel, answer.identity)
    assert (answer.status, record["status"], record["outcome"]) == (status, status, outcome)
    assert len(record["attempts"]) == 1


async def test_a_limit_leaves_its_record_too(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    key = citadel.key(requests_per_minute=1)
    for status, outcome in ((200, "ok"), (429, "rate_limit_exceeded")):
        answer = await client.post(chat(model), key=key)
        record = record_of(citadel, answer.identity)
        assert (record["status"], record["outcome"]) == (status, outcome)
    assert record["attempts"] == []


@pytest.mark.parametrize("body", [chat, streamed])
async def test_a_client_that_leaves_is_recorded_as_that(
    citadel: Instance, fleet: Start, model: str, client: Client, body: Callable[..., dict[str, Any]]
) -> None:
    server, identity = fleet(model), f"leaver-{model}"
    server.behave("hang")
    task = asyncio.create_task(client.post(body(model), x_request_id=identity))
    await server.until(lambda log: log)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    record = record_of(citadel, identity)
    assert (record["status"], record["outcome"]) == (499, "client_disconnected")
    assert [attempt["outcome"] for attempt in record["attempts"]] == ["cancelled"]


@pytest.mark.parametrize("name", ["tab\tand\nline", "back\\slash \\N \\.", "ünïcödé 日本 🙂", "quote\"'"])
async def test_whatever_a_model_is_called_the_record_says_so(
    citadel: Instance, fleet: Start, model: str, client: Client, name: str
) -> None:
    fleet(f"{model} {name}")
    answer = await client.post(chat(f"{model} {name}"))
    assert answer.status == 200
    assert record_of(citadel, answer.identity)["model"] == f"{model} {name}"


async def test_no_texts_are_kept(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    secret = f"my-secret-{model}"
    answer = await client.post(chat(model, secret, user=secret))
    assert secret not in str(record_of(citadel, answer.identity))


async def test_many_at_once_leave_one_each(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    identities = [f"crowd-{model}-{number}" for number in range(200)]
    await asyncio.gather(*(client.post(chat(model), x_request_id=identity) for identity in identities))
    begun = time.monotonic()
    for identity in identities:
        record_of(citadel, identity)
    assert time.monotonic() - begun < 10
