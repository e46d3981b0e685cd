"""N requests at once: exactly N run, and a place is free as soon as its request has ended, however it did."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis

from tests.faults.invariants import eventually
from tests.fleet.control import Fleet, calls_of
from tests.gateway.client import CHAT, EMBEDDINGS, Client, Reply, chat, streamed
from tests.held_up import HELD_UP
from tests.instance import Instance

Start = Callable[..., Fleet]
FREE_WITHIN = 1.0 + HELD_UP


@asynccontextmanager
async def held(
    server: Fleet, client: Client, model: str, key: str, count: int, *, of: int = 0
) -> AsyncIterator[list["asyncio.Task[Reply]"]]:
    """So many requests that run (of more that try); they leave at the end."""
    server.behave("hang", body="hold")
    before = len(server.calls())
    tasks = [asyncio.create_task(client.post(chat(model, "hold"), key=key)) for _ in range(of or count)]
    try:
        await server.until(lambda log: len(calls_of(log)) >= before + count)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_for_a_place(client: Client, model: str, key: str) -> float:
    """The seconds until a request is admitted."""
    begun = time.monotonic()
    while (await client.post(chat(model), key=key)).status == 429:
        assert time.monotonic() - begun < 10
    return time.monotonic() - begun


async def test_exactly_n_of_many_run(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server, key = fleet(model), citadel.key(concurrent=3)
    async with held(server, client, model, key, 3, of=20) as tasks:
        while len(ended := [task for task in tasks if task.done()]) < 17:
            await asyncio.wait(set(tasks) - set(ended), return_when=asyncio.FIRST_COMPLETED)
        refused = [task.result() for task in ended]
        assert {reply.code for reply in refused} == {"concurrency_limit_exceeded"}
        assert {int(reply.headers["retry-after"]) for reply in refused} == {1}
        assert {reply.json()["error"]["type"] for reply in refused} == {"rate_limit_error"}
        assert len(server.calls()) == server.state().in_flight == 3


async def test_a_client_that_leaves_gives_its_place_back(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server, key = fleet(model), citadel.key(concurrent=2)
    async with held(server, client, model, key, 2) as (first, _):
        assert (await client.post(chat(model), key=key)).code == "concurrency_limit_exceeded"
        first.cancel()
        assert await wait_for_a_place(client, model, key) < FREE_WITHIN


@pytest.mark.parametrize(
    "behaviour",
    ["", "error 500", "error 400", "error 429", "die request rst", "die chunk:2 rst", "ok_error", "no_finish"],
)
@pytest.mark.parametrize("body", [chat, streamed])
async def test_however_a_request_ends_its_place_is_free_for_the_next(
    citadel: Instance, fleet: Start, model: str, client: Client, body: Callable[..., dict[str, object]], behaviour: str
) -> None:
    """One after the other, each as soon as the one before has its answer: none may find the only place taken.

    Each on a connection of its own: a stream that was cut closes its own.
    """
    server, key = fleet(model), citadel.key(concurrent=1)
    for _ in range(4):  # fewer failures than eject a server
        if behaviour:
            server.behave(behaviour, next=1)
        assert (await client.post(body(model), key=key, connection="close")).code != "concurrency_limit_exceeded"
        assert (await client.post(chat(model), key=key, connection="close")).status == 200


async def test_a_stream_holds_its_place_to_its_end(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model, tokens=5)
    key = citadel.key(concurrent=1)
    headers = {"authorization": f"Bearer {key}"}
    body = streamed(model, "[[behave:slow_chunks 60]]")
    async with client.session.post(CHAT, json=body, headers=headers) as stream:
        assert await stream.content.readline()
        assert (await client.post(chat(model), key=key)).code == "concurrency_limit_exceeded"
        assert (await stream.read()).endswith(b"data: [DONE]\n\n")
    assert (await client.post(chat(model), key=key)).status == 200


async def test_an_answer_out_of_the_cache_needs_no_place(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    server, key = fleet(model), citadel.key(concurrent=1)
    known, vectors = chat(model, "known", seed=1), {"model": model, "input": "known"}
    for body, path in ((known, CHAT), (vectors, EMBEDDINGS)):
        assert (await client.post(body, path, key=key)).cache == "miss"
    async with held(server, client, model, key, 1):
        assert (await client.post(chat(model), key=key)).status == 429
        for body, path in ((known, CHAT), ({**known, "stream": True}, CHAT), (vectors, EMBEDDINGS)):
            assert (await client.post(body, path, key=key)).cache == "hit"


async def test_nought_lifts_the_limit(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    async with held(server, client, model, citadel.key(concurrent=0), 50):
        assert server.state().in_flight == 50


async def test_without_a_word_the_default_is_five(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    server, key = fleet(model), citadel.key(concurrent=None)
    async with held(server, client, model, key, 5):
        assert (await client.post(chat(model), key=key)).code == "concurrency_limit_exceeded"


async def test_a_stream_that_another_goes_on_with_is_his_own(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """The place of who has left is free, and who goes on with it has one: as one that runs, not as an answer known."""
    fleet(model, tokens=60).behave("slow_chunks 80")
    first, second = (citadel.key("readers", concurrent=1) for _ in range(2))
    body = streamed(model, max_tokens=60, seed=7)
    owns, along = [
        await client.session.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"})
        for key in (first, second)
    ]
    assert (await client.post(chat(model), key=first)).code == "concurrency_limit_exceeded"
    assert (await client.post(chat(model), key=second)).status == 200, "who reads along has none"
    owns.close()
    assert await wait_for_a_place(client, model, first) < FREE_WITHIN
    assert (await client.post(chat(model), key=second)).code == "concurrency_limit_exceeded"
    assert (await along.read()).endswith(b"data: [DONE]\n\n")
    assert (await client.post(chat(model), key=second)).status == 200
    with redis.Redis.from_url(citadel.redis_url) as state:
        for key in (first, second):
            eventually(lambda key=key: state.hgetall(f"limits:running:{key.split('_')[1]}"))


async def test_who_waits_for_the_whole_of_a_stream_and_goes_on_with_it_runs(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """Though it has not been let in yet: else one key would run any number by leaving streams to itself."""
    fleet(model, tokens=60).behave("slow_chunks 80")
    key = citadel.key(concurrent=1)
    body = {**chat(model, max_tokens=60), "seed": 7}
    stream = await client.session.post(CHAT, json={**body, "stream": True}, headers={"authorization": f"Bearer {key}"})
    heir = asyncio.create_task(client.post(body, key=key))
    await asyncio.sleep(0.5)
    stream.close()
    await asyncio.sleep(0.5)
    assert (await client.post(chat(model), key=key)).code == "concurrency_limit_exceeded"
    reply = await heir
    assert (reply.status, reply.cache) == (200, "coalesced")
    assert (await client.post(chat(model), key=key)).status == 200
    with redis.Redis.from_url(citadel.redis_url) as state:
        eventually(lambda: state.hgetall(f"limits:running:{key.split('_')[1]}"))


async def test_a_call_that_is_taken_over_and_breaks_off_leaves_nothing_behind(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """Who takes it over has its place among those that run, and asks for one of his own after it: but one of them."""
    server, key = fleet(model, tokens=20), citadel.key(concurrent=2)
    server.behave("slow_chunks 80; die chunk:12 rst", next=1)
    body, headers = streamed(model, seed=7), {"authorization": f"Bearer {key}"}
    async with client.session.post(CHAT, json=body, headers=headers) as stream:
        assert await stream.content.readline()
        heir = asyncio.create_task(client.post(chat(model, seed=7), key=key))
        await asyncio.sleep(0.2)
    reply = await heir
    assert reply.status == 200
    assert len([visit for visit in server.log() if visit.method == "POST"]) == 2, "the heir has asked anew"
    with redis.Redis.from_url(citadel.redis_url) as state:
        eventually(lambda: state.hgetall(f"limits:running:{key.split('_')[1]}"))
