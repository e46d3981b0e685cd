"""Usage: told when asked for, on every server; counted and recorded in any case."""

from collections.abc import Callable

import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, chat, streamed
from tests.instance import Instance

Start = Callable[..., Fleet]
WITH_USAGE = {"include_usage": True}


@pytest.mark.parametrize("style", ["last", "null_each", "in_finish", "running", "missing"])
@pytest.mark.parametrize("asked", [False, True])
async def test_a_stream_tells_usage_at_its_end_if_asked_and_the_record_has_it(
    citadel: Instance, fleet: Start, model: str, client: Client, style: str, asked: bool
) -> None:
    server = fleet(model, tokens=5)
    server.behave(f"usage {style}")
    answer = await client.post(streamed(model, **({"stream_options": WITH_USAGE} if asked else {})))
    alone = [chunk for chunk in answer.chunks if not chunk["choices"]]
    assert answer.events[-1] == "[DONE]"
    if asked:
        told = [chunk["usage"] for chunk in answer.chunks if chunk.get("usage")][-1]
        assert told["completion_tokens"] == 5
        assert told["total_tokens"] == told["prompt_tokens"] + 5
    else:
        assert not alone
    [record] = citadel.records(answer.identity)
    assert record["completion_tokens"] == 5
    assert record["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "prompt"),
    [("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}), (COMPLETIONS, {"prompt": "x"})],
)
async def test_what_citadel_counted_itself_says_that_it_did(
    fleet: Start, model: str, client: Client, path: str, prompt: dict[str, object]
) -> None:
    fleet(model, tokens=5).behave("usage missing")
    body = {"model": model, **prompt, "stream": True, "stream_options": WITH_USAGE}
    answer = await client.post(body, path)
    last = answer.chunks[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert last["citadel"] == {"usage": "estimated"}
    assert last["object"] == answer.chunks[0]["object"]
    assert last["model"] == model


async def test_a_cut_stream_is_counted_so_far(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model, tokens=9).behave("die chunk:4")
    answer = await client.post(streamed(model, stream_options=WITH_USAGE), connection="close")
    [record] = citadel.records(answer.identity)
    assert (record["outcome"], record["completion_tokens"]) == ("stream_interrupted", 4)


async def test_a_whole_answer_is_counted_as_its_server_says(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model, tokens=7)
    answer = await client.post(chat(model))
    [record] = citadel.records(answer.identity)
    usage = answer.json()["usage"]
    assert (record["prompt_tokens"], record["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert record["completion_tokens"] == 7


@pytest.mark.parametrize("text", ["x" * 400, "x" * 4000])
async def test_a_whole_answer_whose_server_doesnt_count_is_estimated(
    citadel: Instance, fleet: Start, model: str, client: Client, text: str
) -> None:
    fleet(model, tokens=50).behave("usage missing")
    for body, path in ((chat(model, text), CHAT), ({"model": model, "prompt": text}, COMPLETIONS)):
        answer = await client.post(body, path)
        assert "usage" not in answer.json()
        [record] = citadel.records(answer.identity)
        assert len(text) // 4 <= record["prompt_tokens"] <= len(text) // 4 + 40
        assert 50 <= record["completion_tokens"] <= 130, "of words with some 6 bytes each"
    answer = await client.post({"model": model, "input": text}, EMBEDDINGS)
    [record] = citadel.records(answer.identity)
    assert len(text) // 4 <= record["prompt_tokens"] <= len(text) // 4 + 40
