"""N requests a minute: exactly N at once when the window is empty, and no more than N in any 60 seconds."""

import asyncio
import re
from collections.abc import Callable

import psutil
import pytest
import redis

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, Reply, chat, streamed
from tests.instance import Instance

Start = Callable[..., Fleet]
LIMIT = 7
BODIES = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": "a"},
    EMBEDDINGS: {"input": "a"},
}


async def at_once(client: Client, model: str, key: str, count: int) -> tuple[list[Reply], list[Reply]]:
    """Those of so many simultaneous requests that were admitted, and those that were refused."""
    replies = await asyncio.gather(*(client.post(chat(model), key=key) for _ in range(count)))
    return [reply for reply in replies if reply.status == 200], [reply for reply in replies if reply.status == 429]


def let_pass(citadel: Instance, key: str, seconds: float, *, only: int | None = None) -> None:
    """Makes the admissions of `key` older, the first `only` of them, as waiting would."""
    window = f"limits:window:{key.split('_')[1]}"
    with redis.Redis.from_url(citadel.redis_url) as state:
        times = [int(time) for time in state.lrange(window, 0, -1)]
        assert times, "nothing was admitted"
        older = [
            time - int(seconds * 1000) if only is None or place < only else time for place, time in enumerate(times)
        ]
        with state.pipeline() as changes:
            changes.delete(window).rpush(window, *sorted(older)).execute()


async def test_exactly_n_of_many_at_once_are_admitted(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server, key = fleet(model), citadel.key(requests_per_minute=LIMIT)
    admitted, refused = await at_once(client, model, key, 4 * LIMIT)
    assert (len(admitted), len(refused)) == (LIMIT, 3 * LIMIT)
    assert len(server.calls()) == LIMIT
    assert sorted(int(reply.headers["x-ratelimit-remaining-requests"]) for reply in admitted) == list(range(LIMIT))
    assert {reply.headers["x-ratelimit-limit-requests"] for reply in [*admitted, *refused]} == {str(LIMIT)}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_refused_is_gone(
    citadel: Instance, fleet: Start, model: str, client: Client, stream: bool
) -> None:
    """With its body, as soon as its client is told so: else the worker's memory fills up with what it does not do."""
    fleet(model)
    key, worker = citadel.key(requests_per_minute=1), psutil.Process(citadel.worker)
    assert (await client.post(chat(model), key=key)).status == 200
    before = worker.memory_info().rss
    for number in range(30):
        large = chat(model, str(number) * 5_000_000, stream=stream)
        assert (await client.post(large, key=key)).code == "rate_limit_exceeded"
    assert worker.memory_info().rss - before < 60_000_000  # of the 225 MB that came


async def test_a_refusal_says_what_when_and_where_the_client_stands(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    key = citadel.key(requests_per_minute=1)
    admitted = await client.post(chat(model), key=key)
    assert admitted.headers["x-ratelimit-reset-requests"] in ("1m0s", "60s")
    assert "retry-after" not in admitted.headers
    for body in (chat(model), streamed(model)):
        refused = await client.post(body, key=key)
        assert refused.status == 429
        error = refused.json()["error"]
        when = r"(1m0s|5[5-9]s)"
        assert re.fullmatch(
            rf"This key has used up its requests a minute\. One more may come in {when}\.", error.pop("message")
        )
        assert error == {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
        assert refused.headers["content-type"] == "application/json"
        assert 55 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"] in ("1m0s", *(f"{second}s" for second in range(55, 61)))


async def test_as_many_are_admitted_again_as_have_left_the_window(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    key = citadel.key(requests_per_minute=LIMIT)
    await at_once(client, model, key, LIMIT)
    let_pass(citadel, key, 50)
    admitted, [refused] = await at_once(client, model, key, 1)
    assert not admitted
    assert 5 <= int(refused.headers["retry-after"]) <= 10
    let_pass(citadel, key, 10, only=3)
    admitted, refusals = await at_once(client, model, key, 2 * LIMIT)
    assert (len(admitted), len(refusals)) == (3, 2 * LIMIT - 3)
    let_pass(citadel, key, 60)
    admitted, refusals = await at_once(client, model, key, 2 * LIMIT)
    assert (len(admitted), len(refusals)) == (LIMIT, LIMIT)


async def test_what_was_refused_for_any_reason_does_not_count(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server, key = fleet(model), citadel.key(requests_per_minute=2, concurrent=1)
    for body in (chat(model, temperature=9), {"model": model}, b"{", chat("no-such-model")):
        assert (await client.post(body, key=key)).status in (400, 404)
    server.behave("hang", next=1)
    hanging = asyncio.create_task(client.post(chat(model), key=key))
    await server.until(lambda log: log)
    for _ in range(3):
        assert (await client.post(chat(model), key=key)).code == "concurrency_limit_exceeded"
    hanging.cancel()
    replies = []
    while (reply := await client.post(chat(model), key=key)).code != "rate_limit_exceeded":
        replies.append(reply)  # the place of the one that left is free within a second
    assert [reply.status for reply in replies if reply.status != 429] == [200]


async def test_the_doors_share_one_window_and_the_list_of_models_is_not_one_of_them(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    key = citadel.key(requests_per_minute=3)
    for path, body in BODIES.items():
        assert (await client.post({"model": model, **body}, path, key=key)).status == 200
    for path, body in BODIES.items():
        assert (await client.post({"model": model, **body}, path, key=key)).code == "rate_limit_exceeded"
    for path in ("/v1/models", f"/v1/models/{model}"):
        reply = await client.get(path, key=key)
        assert reply.status == 200
        assert "x-ratelimit-limit-requests" not in reply.headers
        assert reply.headers["x-ratelimit-reset-requests"] == "0ms"
        assert (reply.cache, reply.headers["x-citadel-attempts"]) == ("hit", "0")
        assert int(reply.headers["openai-processing-ms"]) >= 0


async def test_answers_out_of_the_cache_count(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server, key = fleet(model), citadel.key(requests_per_minute=2)
    replies = [await client.post(chat(model, seed=1), key=key) for _ in range(3)]
    assert [reply.headers.get("x-citadel-cache") for reply in replies[:2]] == ["miss", "hit"]
    assert replies[1].headers["x-ratelimit-remaining-requests"] == "0"
    assert replies[2].code == "rate_limit_exceeded"
    assert len(server.calls()) == 1


async def test_keys_do_not_touch_each_other_not_even_of_one_team(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    team = f"team-of-{model}"
    one, two = (citadel.key(team, requests_per_minute=1) for _ in range(2))
    for key, status in ((one, 200), (one, 429), (two, 200), (two, 429)):
        assert (await client.post(chat(model), key=key)).status == status


async def test_nought_lifts_the_limit(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    admitted, refused = await at_once(client, model, citadel.key(requests_per_minute=0), 100)
    assert (len(admitted), len(refused)) == (100, 0)
    told = {
        name.lower(): value for name, value in admitted[0].headers.items() if name.lower().startswith("x-ratelimit")
    }
    assert told == {"x-ratelimit-reset-requests": "0ms"}, "the two numbers alone are left out"


@pytest.mark.parametrize("spent", [1, 3])
async def test_without_a_word_the_default_is_sixty(
    citadel: Instance, fleet: Start, model: str, client: Client, spent: int
) -> None:
    fleet(model)
    key = citadel.key(requests_per_minute=None)
    reply = [await client.post(chat(model), key=key) for _ in range(spent)][-1]
    assert reply.headers["x-ratelimit-limit-requests"] == "60"
    assert reply.headers["x-ratelimit-remaining-requests"] == str(60 - spent)


async def test_a_limit_that_is_changed_holds_at_once_for_what_was_admitted_before(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.gateway.models import Key

    fleet(model)
    key = citadel.key(requests_per_minute=LIMIT)
    await at_once(client, model, key, 4)
    for limit, more in ((3, 0), (6, 2)):
        Key.objects.filter(key_id=key.split("_")[1]).update(requests_per_minute=limit)
        citadel.settle()
        admitted, _ = await at_once(client, model, key, 10)
        assert len(admitted) == more
