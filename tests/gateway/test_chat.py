"""Plain and streamed chat through the whole of Citadel."""

import json
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.fleet.control import Fleet
from tests.instance import Instance

Start = Callable[..., Fleet]


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}


async def test_plain_chat_is_passed_on_as_the_server_sent_it(
    citadel: Instance, fleet: Start, model: str, http: aiohttp.ClientSession
) -> None:
    server = fleet(model)
    async with http.post("/v1/chat/completions", json=chat(model, x_echo=True, unknown={"deep": [1, 2]})) as answer:
        body = await answer.json()
        assert answer.status == 200
        assert body["x_echo"]["unknown"] == {"deep": [1, 2]}
        assert answer.headers["x-citadel-server"] == server.server_id
        assert answer.headers["x-citadel-attempts"] == "1"
        assert answer.headers["x-citadel-cache"] == "bypass"
        [record] = citadel.records(answer.headers["x-request-id"])
    assert record["outcome"] == "ok"
    assert record["completion_tokens"] == body["usage"]["completion_tokens"] > 0


async def test_a_stream_ends_with_done_and_hides_usage_that_nobody_asked_for(
    fleet: Start, model: str, http: aiohttp.ClientSession
) -> None:
    fleet(model, tokens=5)
    async with http.post("/v1/chat/completions", json=chat(model, stream=True)) as answer:
        text = (await answer.read()).decode()
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(chunk["choices"] for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
