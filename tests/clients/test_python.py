"""What the `openai` package for Python has of its own, and each server's habits as it meets them."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import openai
import pytest

from tests.clients.conftest import KINDS, Served
from tests.instance import Instance

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def asked(served: Served, message: str = "hello") -> dict[str, Any]:
    return {"model": served.model, "messages": [{"role": "user", "content": message}]}


@pytest.fixture
async def async_client(citadel: Instance) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{citadel.url}/v1", api_key=citadel.key(), max_retries=0) as client:
        yield client


@pytest.mark.parametrize("style", ["last", "null_each", "in_finish", "running", "missing"])
def test_usage_comes_when_asked_for_wherever_the_server_tells_it(
    client: openai.OpenAI, served: Mapping[str, Served], style: str
) -> None:
    request = asked(served["trouble"], f"[[behave:usage {style}]]")
    chunks = list(
        client.chat.completions.create(**request, max_tokens=5, stream=True, stream_options={"include_usage": True})
    )
    usage = [chunk.usage for chunk in chunks if chunk.usage][-1]
    assert usage.completion_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + 5
    unasked = list(client.chat.completions.create(**request, max_tokens=5, stream=True))
    assert all(chunk.choices for chunk in unasked)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_helper_puts_text_and_tool_calls_together(
    client: openai.OpenAI, served: Mapping[str, Served], kind: str
) -> None:
    request = asked(served[kind])
    with client.chat.completions.stream(**request) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    whole = client.chat.completions.create(**request)
    assert final.choices[0].message.content == whole.choices[0].message.content
    with client.chat.completions.stream(**request, tools=[WEATHER], tool_choice="required") as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls
    assert [call.function.name for call in calls] == ["weather"]
    assert list(cast(dict[str, str], calls[0].function.parsed_arguments)) == ["city"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed_first", [False, True])
def test_an_answer_out_of_the_cache_reads_the_same_in_either_form(
    client: openai.OpenAI, served: Mapping[str, Served], kind: str, streamed_first: bool
) -> None:
    request = {**asked(served[kind], secrets.token_hex(8)), "temperature": 0}
    calling = {**request, "tools": [WEATHER], "tool_choice": "required"}

    def told(request: dict[str, Any], streams: bool) -> tuple[str, dict[str, Any]]:
        if not streams:
            raw = client.chat.completions.with_raw_response.create(**request)
            return raw.headers["x-citadel-cache"], _essence(raw.parse())
        with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
            return stream._response.headers["x-citadel-cache"], _essence(stream.get_final_completion())

    for asking in (request, calling):
        (first, made), (second, kept) = told(asking, streamed_first), told(asking, not streamed_first)
        assert (first, second) == ("miss", "hit")
        assert made == kept


def _essence(answer: Any) -> dict[str, Any]:
    """What a program reads of an answer."""
    [choice] = answer.choices
    calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return {
        "text": choice.message.content or None,
        "calls": calls,
        "finish": choice.finish_reason,
        "tokens": answer.usage.completion_tokens,
    }


def test_unknown_fields_pass_both_ways(client: openai.OpenAI, served: Mapping[str, Served]) -> None:
    extra = {"x_echo": True, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}}
    answer = client.chat.completions.create(**asked(served["vllm"]), extra_body=extra)
    echoed = (answer.model_extra or {})["x_echo"]
    assert {name: echoed[name] for name in extra} == extra
    stream = client.chat.completions.create(**asked(served["vllm"]), extra_body=extra, stream=True)
    assert all((chunk.model_extra or {})["x_echo"]["min_p"] == 0.1 for chunk in stream)


def test_the_clients_own_request_id_is_kept_all_the_way(client: openai.OpenAI, served: Mapping[str, Served]) -> None:
    own = f"mine-{secrets.token_hex(4)}"
    answer = client.chat.completions.create(**asked(served["vllm"]), extra_headers={"x-request-id": own})
    assert answer._request_id == own
    assert own in [request.headers.get("x-request-id") for request in served["vllm"].server.log()]


def test_a_key_in_x_api_key_will_do(citadel: Instance, served: Mapping[str, Served]) -> None:
    headers = {"x-api-key": citadel.key()}
    no_bearer: Any = {"authorization": openai.Omit()}
    with openai.OpenAI(base_url=f"{citadel.url}/v1", api_key="unused", default_headers=headers) as client:
        assert client.chat.completions.create(**asked(served["vllm"]), extra_headers=no_bearer).choices


def test_long_answers_are_compressed_and_streams_are_not(client: openai.OpenAI, served: Mapping[str, Served]) -> None:
    request = asked(served["vllm"], "hello " * 300)
    echo = {"x_echo": True}
    whole = client.chat.completions.with_raw_response.create(**request, extra_body=echo)
    assert whole.headers["content-encoding"] == "gzip"
    assert whole.parse().choices
    stream = client.chat.completions.with_raw_response.create(**request, extra_body=echo, stream=True)
    assert "content-encoding" not in stream.headers
    assert list(stream.parse())


def test_a_streaming_response_gives_its_lines_as_they_come(client: openai.OpenAI, served: Mapping[str, Served]) -> None:
    request = asked(served["trouble"], "[[behave:slow_chunks 60]]")
    came = []
    with client.chat.completions.with_streaming_response.create(**request, max_tokens=5, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        for line in response.iter_lines():
            if line:
                came.append(time.monotonic())
    assert line in ("", "data: [DONE]")
    assert len(came) == 8  # who speaks, five of content, the end, [DONE]
    assert came[-1] - came[0] > 0.25


def test_comments_keep_a_silent_stream_alive_unnoticed(client: openai.OpenAI, served: Mapping[str, Served]) -> None:
    request = asked(served["trouble"], "[[behave:stall chunk:1 3.2]]")
    impatient = client.with_options(timeout=2.9)  # a read without a byte for so long would be an error
    text = "".join(
        chunk.choices[0].delta.content or "" for chunk in impatient.chat.completions.create(**request, stream=True)
    )
    assert text == client.chat.completions.create(**request).choices[0].message.content


async def test_many_streams_at_once_each_get_their_own(
    async_client: openai.AsyncOpenAI, served: Mapping[str, Served]
) -> None:
    async def streamed(number: int) -> str:
        stream = await async_client.chat.completions.create(**asked(served["vllm"], f"number {number}"), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def whole(number: int) -> str:
        answer = await async_client.chat.completions.create(**asked(served["vllm"], f"number {number}"))
        return answer.choices[0].message.content or ""

    texts = await asyncio.gather(*map(streamed, range(20)))
    assert texts == await asyncio.gather(*map(whole, range(20)))
    assert len(set(texts)) == 20


@pytest.mark.parametrize("streams", [False, True])
async def test_a_cancelled_task_lets_the_server_go_within_a_second(
    async_client: openai.AsyncOpenAI, served: Mapping[str, Served], streams: bool
) -> None:
    mark, server = secrets.token_hex(8), served["trouble"].server
    request = asked(served["trouble"], f"[[behave:slow_chunks 100; slow_start 100; stall headers 5]] {mark}")

    async def drain() -> None:
        answer: Any = await async_client.chat.completions.create(**request, stream=streams)
        async for _ in answer:
            pass

    task = asyncio.create_task(drain())
    await server.until(lambda log: any(mark in entry.body for entry in log))
    task.cancel()
    cancelled = time.monotonic()
    [seen] = await server.until(lambda log: [entry for entry in log if mark in entry.body and entry.ended])
    assert seen.ended == "client_closed"
    assert seen.ended_at is not None
    assert seen.ended_at - cancelled < 1


async def test_a_place_that_comes_free_is_found_by_the_packages_own_retries(
    citadel: Instance, served: Mapping[str, Served]
) -> None:
    key = citadel.key(concurrent=1)
    request = asked(served["trouble"], "[[behave:slow_chunks 100]]")
    async with openai.AsyncOpenAI(base_url=f"{citadel.url}/v1", api_key=key, max_retries=0) as client:
        first = await client.chat.completions.create(**request, max_tokens=5, stream=True)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**asked(served["trouble"]))
        assert refused.value.code == "concurrency_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        patient = client.with_options(max_retries=3)
        second = asyncio.create_task(patient.chat.completions.create(**asked(served["trouble"])))
        assert [chunk async for chunk in first]
        assert (await second).choices


def test_the_error_body_is_openais(client: openai.OpenAI, served: Mapping[str, Served]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=served["vllm"].model, messages=[])
    assert caught.value.body == json.loads(caught.value.response.content)["error"]
    assert set(json.loads(caught.value.response.content)["error"]) == {"message", "type", "param", "code"}
    assert caught.value.param == "messages"
