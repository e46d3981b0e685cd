"""Chats out of the cache: which are kept, who gets them, in which form, and how a request asks for another way."""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from multidict import CIMultiDict

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, Reply, chat, streamed
from tests.gateway.elsewhere import Elsewhere
from tests.instance import Instance

Start = Callable[..., Fleet]
REPEATABLE: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.0},
    {"seed": 7},
    {"seed": 0, "temperature": 1},
]
OTHER_REQUESTS: list[dict[str, Any]] = [
    {"max_tokens": 3},
    {"seed": 2},
    {"top_p": 0.5},
    {"unknown": [1]},
    {"messages": [{"role": "user", "content": "Hello "}]},
    {"messages": [{"role": "system", "content": "Hello"}]},
]


@pytest.mark.parametrize("more", REPEATABLE)
async def test_what_is_repeatable_is_asked_for_once(
    fleet: Start, model: str, client: Client, more: dict[str, Any]
) -> None:
    server = fleet(model)
    first = await client.post(chat(model, **more))
    second = await client.post(chat(model, **more))
    assert (first.cache, second.cache) == ("miss", "hit")
    assert first.body == second.body
    assert len(server.calls()) == 1
    assert second.headers["x-citadel-server"] == server.server_id
    assert second.headers["x-citadel-attempts"] == "0"
    assert second.headers["content-type"] == first.headers["content-type"] == "application/json"


@pytest.mark.parametrize("more", [{}, {"temperature": 1}, {"temperature": 0.01}, {"seed": None}])
async def test_what_is_not_repeatable_is_not_kept(
    fleet: Start, model: str, client: Client, more: dict[str, Any]
) -> None:
    server = fleet(model)
    for _ in range(2):
        assert (await client.post(chat(model, **more))).cache == "bypass"
    assert len(server.calls()) == 2


async def test_a_request_may_ask_to_be_kept(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    replies = [await client.post(chat(model), x_citadel_cache="use") for _ in range(2)]
    assert [reply.cache for reply in replies] == ["miss", "hit"]
    assert len(server.calls()) == 1


@pytest.mark.parametrize(
    ("header", "told", "afterwards"),
    [
        ({"cache_control": "no-store"}, "bypass", "miss"),
        ({"cache_control": "max-age=0, No-Store"}, "bypass", "miss"),
        ({"x_citadel_cache": "bypass"}, "bypass", "miss"),
        ({"x_citadel_cache": "BYPASS"}, "bypass", "miss"),
        ({"cache_control": "no-cache"}, "miss", "hit"),
    ],
)
async def test_headers_keep_an_answer_out_or_make_a_new_one(
    fleet: Start, model: str, client: Client, header: dict[str, str], told: str, afterwards: str
) -> None:
    """`no-store` and `bypass` neither look nor keep; `no-cache` does not look and keeps what comes."""
    server = fleet(model)
    assert (await client.post(chat(model, seed=1), **header)).cache == told
    assert (await client.post(chat(model, seed=1))).cache == afterwards
    asked = len(server.calls())
    assert (await client.post(chat(model, seed=1), **header)).cache == told
    assert len(server.calls()) == asked + 1


async def test_a_class_may_ask_for_its_models_chats_to_be_kept(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.orchestration.models import ModelClass

    server = fleet(model)
    row = ModelClass.objects.create(name=f"c{secrets.token_hex(4)}", position=1, patterns=[model], cache_chat=True)
    try:
        citadel.settle()
        assert [(await client.post(chat(model))).cache for _ in range(2)] == ["miss", "hit"]
        for header in ({"x_citadel_cache": "bypass"}, {"cache_control": "no-store"}):
            assert (await client.post(chat(model), **header)).cache == "bypass"
        assert len(server.calls()) == 3
    finally:
        row.delete()
        citadel.settle()


async def test_headers_of_several_lines_are_heeded_whole(fleet: Start, model: str, client: Client) -> None:
    """RFC 9110, 5.3: as if they stood in one, joined by commas."""
    server = fleet(model)
    lines = CIMultiDict([("cache-control", "no-store"), ("cache-control", "max-age=0")])
    lines.extend([("accept-encoding", "gzip"), ("accept-encoding", "identity;q=0.1")])
    for _ in range(2):
        async with client.session.post(CHAT, json=chat(model, "x " * 2000, seed=1), headers=lines) as reply:
            assert reply.headers["x-citadel-cache"] == "bypass"
        async with client.session.get("/api/v1/openapi.json", headers=lines) as reply:
            assert reply.headers["content-encoding"] == "gzip"
    assert len(server.calls()) == 2


@pytest.mark.parametrize("option", ["continuous_usage_stats", "include_obfuscation"])
async def test_what_changes_a_streams_chunks_has_an_entry_of_its_own(
    fleet: Start, model: str, client: Client, option: str
) -> None:
    fleet(model)
    plain, other = streamed(model, seed=1), {**streamed(model, seed=1), "stream_options": {option: True}}
    counting = {**other, "stream_options": {option: True, "include_usage": True}}
    said = [(await client.post(body)).cache for body in (plain, other, other, counting, chat(model, seed=1))]
    assert said == ["miss", "miss", "hit", "hit", "hit"]


@pytest.mark.parametrize("more", OTHER_REQUESTS)
async def test_another_request_has_another_entry(
    fleet: Start, model: str, client: Client, more: dict[str, Any]
) -> None:
    fleet(model)
    assert (await client.post(chat(model, seed=1))).cache == "miss"
    assert (await client.post({**chat(model, seed=1), **more})).cache == "miss"


async def test_the_same_request_written_another_way_has_the_same(fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    body = chat(model, "Grüße", seed=1, unknown={"b": 1, "a": [True]})
    assert (await client.post(body)).cache == "miss"
    turned = {name: body[name] for name in sorted(body, reverse=True)}
    turned["unknown"] = {"a": [True], "b": 1}
    for written in (json.dumps(turned, indent=3), json.dumps(turned, ensure_ascii=False)):
        assert (await client.post(written.encode())).cache == "hit"


async def test_doors_do_not_share_entries(fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    body = {"model": model, "prompt": "Hello", "messages": [{"role": "user", "content": "Hello"}], "seed": 1}
    for path, kind in ((CHAT, "chat.completion"), (COMPLETIONS, "text_completion")):
        reply = await client.post(body, path)
        assert reply.cache == "miss"
        assert reply.json()["object"] == kind


async def test_teams_do_not_share_entries_and_keys_of_a_team_do(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    one, same, other = citadel.key(f"a-{model}"), citadel.key(f"a-{model}"), citadel.key(f"b-{model}")
    for key, told in ((one, "miss"), (same, "hit"), (other, "miss"), (other, "hit")):
        assert (await client.post(chat(model, seed=1), key=key)).cache == told
    for key, told in ((one, "miss"), (same, "hit"), (other, "miss")):
        assert (await client.post({"model": model, "input": "Hello"}, EMBEDDINGS, key=key)).cache == told


async def test_an_alias_and_its_model_are_one(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    from apps.orchestration.models import Alias

    server = fleet(model)
    alias = Alias.objects.create(name=f"alias-{model}", model=model)
    try:
        citadel.settle()
        assert (await client.post(chat(alias.name, seed=1))).cache == "miss"
        assert (await client.post(chat(model, seed=1))).cache == "hit"
        assert (await client.post({"model": alias.name, "input": "Hello"}, EMBEDDINGS)).cache == "miss"
        assert (await client.post({"model": model, "input": "Hello"}, EMBEDDINGS)).cache == "hit"
        assert {entry.json()["model"] for entry in server.log()} == {model}
    finally:
        alias.delete()


@pytest.mark.parametrize("first_streams", [False, True])
async def test_either_form_is_answered_from_the_other(
    fleet: Start, model: str, client: Client, first_streams: bool
) -> None:
    server = fleet(model)
    bodies = [streamed(model, seed=1, n=2), chat(model, seed=1, n=2)]
    made, kept = [await client.post(body) for body in (bodies if first_streams else reversed(bodies))]
    assert (made.cache, kept.cache) == ("miss", "hit")
    assert made.texts == kept.texts
    assert len(set(made.texts.values())) == 2
    stream, whole = (made, kept) if first_streams else (kept, made)
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.events[-1] == "[DONE]"
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in stream.chunks), "usage that nobody asked for"
    assert {chunk["object"] for chunk in stream.chunks} == {"chat.completion.chunk"}
    assert whole.json()["object"] == "chat.completion"
    assert whole.json()["usage"]["completion_tokens"] > 0
    assert len(server.calls()) == 1
    again = await client.post(bodies[0])
    assert again.events[-1] == "[DONE]"
    assert again.texts == made.texts
    assert all(chunk["choices"] for chunk in again.chunks)
    with_usage = await client.post({**bodies[0], "stream_options": {"include_usage": True}})
    assert with_usage.events[-1] == "[DONE]"
    assert with_usage.chunks[-1]["usage"] == whole.json()["usage"]
    assert with_usage.chunks[-1]["choices"] == []
    assert (again.cache, with_usage.cache) == ("hit", "hit")


@pytest.mark.parametrize("usage", ["last", "in_finish", "running", "missing"])
@pytest.mark.parametrize("asked", [True, False])
async def test_a_stream_out_of_the_cache_is_the_stream_that_made_it(
    fleet: Start, model: str, client: Client, usage: str, asked: bool
) -> None:
    fleet(model, tokens=5).behave(f"usage {usage}")
    plain = streamed(model, seed=1)
    counting = {**plain, "stream_options": {"include_usage": True}}
    made = await client.post(counting if asked else plain)
    same, other = await client.post(counting if asked else plain), await client.post(plain if asked else counting)
    assert (made.cache, same.cache, other.cache) == ("miss", "hit", "hit")
    assert same.body == made.body
    told, untold = (same, other) if asked else (other, same)
    assert [chunk["usage"] for chunk in told.chunks if chunk.get("usage")][-1]["completion_tokens"] == 5
    assert [event for event in told.events if event in untold.events] == untold.events
    assert (await client.post(chat(model, seed=1))).json()["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "behaviour"),
    [
        (body, behaviour)
        for body in (chat, streamed)
        for behaviour in ("error 400", "error 500", "error 429", "ok_error")
    ]
    + [(chat, "die headers"), (chat, "not_json"), (streamed, "die chunk:3"), (streamed, "no_finish")],
)
async def test_what_went_wrong_is_not_kept(
    fleet: Start, model: str, client: Client, body: Callable[..., dict[str, Any]], behaviour: str
) -> None:
    server = fleet(model)
    server.behave(behaviour, next=2)
    bad = await client.post(body(model, seed=1), connection="close")
    assert bad.status >= 400 or b'"error"' in bad.body
    server.behave()
    good = await client.post(body(model, seed=1))
    assert (good.status, good.cache) == (200, "miss")
    assert (await client.post(body(model, seed=1))).cache == "hit"


async def test_what_has_no_other_form_is_passed_on_and_not_kept(fleet: Start, model: str, client: Client) -> None:
    shape = {"object": 5, "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]}
    server = fleet(model)
    server.behave({"json_is": {"value": json.dumps(shape)}}, next=1)
    odd = await client.post(chat(model, seed=1))
    assert (odd.status, odd.json()) == (200, shape)
    good = await client.post(streamed(model, seed=1))
    assert (good.status, good.cache, good.events[-1]) == (200, "miss", "[DONE]")
    assert (await client.post(chat(model, seed=1))).cache == "hit"


@pytest.mark.parametrize(
    "choice", ["x", {}, {"message": None}, {"message": "x"}, {"message": {"tool_calls": ["x"]}}], ids=str
)
async def test_a_choice_that_says_nothing_is_no_answer_and_not_kept(
    fleet: Start, model: str, client: Client, choice: Any
) -> None:
    server = fleet(model)
    server.behave({"json_is": {"value": json.dumps({"choices": [choice]})}}, next=1)
    assert (await client.post(chat(model, temperature=0))).status == 502
    good = await client.post(chat(model, temperature=0))
    assert (good.status, good.cache) == (200, "miss")


@pytest.mark.parametrize("index", ["null", "2000000"])
async def test_a_stream_that_can_not_be_put_together_is_no_answer_to_a_plain_request(
    fleet: Start, model: str, client: Client, index: str
) -> None:
    call = {"index": json.loads(index), "function": {"name": "go", "arguments": "{}"}}
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]})
    server = fleet(model)
    server.behave({"event_is": {"data": chunk}}, next=1)
    assert (await client.post(streamed(model, seed=1))).events[-1] == "[DONE]"
    kept = await client.post(streamed(model, seed=1))
    assert (kept.cache, len(server.calls())) == ("hit", 1)
    whole = await client.post(chat(model, seed=1))
    assert (whole.status, whole.cache, len(server.calls())) == (200, "miss", 2)
    assert (await client.post(chat(model, seed=1))).cache == "hit"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_usage_that_no_server_told_is_estimated_in_a_stream_of_a_plain_answer(
    fleet: Start, model: str, client: Client, path: str
) -> None:
    prompt = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    body = {"model": model, **prompt, "seed": 1}
    fleet(model, tokens=12).behave("usage missing")
    whole = await client.post(body, path)
    assert "usage" not in whole.json()
    stream = await client.post({**body, "stream": True, "stream_options": {"include_usage": True}}, path)
    assert stream.cache == "hit"
    last = stream.chunks[-1]
    assert last["choices"] == []
    assert 6 <= last["usage"]["completion_tokens"] <= 24
    assert last["usage"]["prompt_tokens"] > 0
    assert last["citadel"] == {"usage": "estimated"}
    assert last["object"] == stream.chunks[0]["object"]


@pytest.mark.parametrize("more", [{}, {"seed": 1}])
@pytest.mark.parametrize(
    ("path", "behaviour"),
    [
        (CHAT, "not_utf8"),
        (COMPLETIONS, "not_utf8 of=text"),
        (EMBEDDINGS, "not_utf8 of=model"),
        (CHAT, {"json_is": {"value": '{"data":[{"embedding":[1]}]}'}}),
        (CHAT, {"json_is": {"value": '{"choices":[],"data":[{"embedding":[1]}]}'}}),
        (EMBEDDINGS, {"json_is": {"value": '{"choices":[{"message":{"content":"x"}}]}'}}),
    ],
)
async def test_an_answer_of_another_kind_is_none(
    fleet: Start, model: str, client: Client, path: str, behaviour: Any, more: dict[str, Any]
) -> None:
    server = fleet(model)
    server.behave(behaviour)
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", **more}
    bypass = {} if more else {"x_citadel_cache": "bypass"}
    bad = await client.post(body, path, **bypass)
    assert (bad.status, bad.json()["error"]["type"]) == (502, "upstream_error")
    server.behave()
    good = await client.post(body, path)
    assert (good.status, good.cache) == (200, "miss" if more or path == EMBEDDINGS else "bypass")


async def test_entries_live_an_hour_and_embeddings_a_day(
    fresh_entries: Callable[[], dict[bytes, int]], fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    await client.post(chat(model, seed=1))
    await client.post({"model": model, "input": ["one", "two"]}, EMBEDDINGS)
    lives = fresh_entries()
    assert sum(name.startswith(b"chat:") for name in lives) >= 1
    assert sum(name.startswith(b"embed:") for name in lives) >= 2
    for name, seconds in lives.items():
        longest = 3600 if name.startswith(b"chat:") else 86400
        assert longest - 30 < seconds <= longest, name


@pytest.fixture
def fresh_entries(citadel: Instance) -> Iterator[Callable[[], dict[bytes, int]]]:
    """What was kept since, with the seconds that it has left; by whichever test, all under the same settings."""
    url = json.loads((citadel.home / "run" / "services.json").read_text())["REDIS_CACHE_URL"]
    with redis.Redis.from_url(re.sub(r"db=\d+", "db=1", url)) as cache:
        before = set(cache.keys())

        def fresh() -> dict[bytes, int]:
            lives = {name: (cache.get(name), cache.ttl(name)) for name in set(cache.keys()) - before}
            # A lead is none yet, and may end between two questions.
            return {name: left for name, (entry, left) in lives.items() if entry and not entry.startswith(b"lead:")}

        yield fresh


async def test_a_setting_says_how_long(elsewhere: Elsewhere) -> None:
    """There a second, for both."""
    requests = [(chat(elsewhere.model, seed=1), CHAT), ({"model": elsewhere.model, "input": "Hello"}, EMBEDDINGS)]
    async with elsewhere.asking() as client:
        for body, path in requests:
            told: list[str] = []
            while told.count("miss") < 2:
                told.append((await client.post(body, path)).cache)
                assert len(told) < 10_000
            assert told[0] == "miss"
            assert set(told[1:-1]) == {"hit"}


async def test_the_record_of_a_hit_says_so(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    replies: list[Reply] = [await client.post(chat(model, seed=1)) for _ in range(2)]
    [miss], [hit] = [citadel.records(reply.identity) for reply in replies]
    assert (miss["cache"], hit["cache"]) == ("miss", "hit")
    assert (hit["server"], hit["attempts"], hit["status"], hit["outcome"]) == (server.server_id, [], 200, "ok")
    assert hit["answer_bytes"] == len(replies[1].body)
