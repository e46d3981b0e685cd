"""A server's time is paid for as long as it works: nobody knows beforehand how long, and nothing is overspent."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest
import redis

from apps.gateway.limits.budgets import BILLION
from apps.gateway.models import Budget, Price
from tests.fleet.control import calls_of
from tests.gateway.client import CHAT, Client, Reply, chat, streamed
from tests.gateway.limits.test_spending import Start, budget, until_spent
from tests.held_up import HELD_UP
from tests.instance import Instance

A_SECOND = 1000
"""What a second of a server costs: it tells how long one worked, whatever the machine."""
UNNOTICED = Decimal("0.5") + Decimal(HELD_UP) / 2
"""Seconds beyond what a request has claimed that it may run on where this machine holds up the worker."""


@pytest.fixture
def by_the_second(citadel: Instance, model: str) -> Iterator[Price]:
    price = Price.objects.create(model=model, server_second=A_SECOND)
    citadel.settle()
    yield price
    price.delete()


def spent_seconds(citadel: Instance, replies: list[Reply]) -> Decimal:
    """What these have cost in all, by their records."""
    records = [citadel.records(reply.headers["x-request-id"])[0] for reply in replies]
    return sum((Decimal(record["cost"]) for record in records), Decimal(0)) / A_SECOND


def running(citadel: Instance, key_id: str) -> list[bytes]:
    """What is claimed of a key's budgets."""
    with redis.Redis.from_url(citadel.redis_url) as state:
        return [*state.scan_iter(f"limits:running:${key_id}*")]


def claimed(citadel: Instance, holder: str) -> int:
    """How much of its money is claimed, in the price's unit."""
    with redis.Redis.from_url(citadel.redis_url) as state:
        amounts = [state.hvals(name) for name in running(citadel, holder)]
    return sum(int(amount) for workers in amounts for amount in workers) // BILLION


@pytest.mark.usefixtures("by_the_second")
@pytest.mark.parametrize("ask", [chat, streamed])
async def test_200_at_once_that_take_longer_than_anything_before_overspend_nothing(
    citadel: Instance, fleet: Start, model: str, client: Client, ask: type
) -> None:
    """Until now all answers were quick; each of these would take 6 s, of 50 that there are."""
    server, key = fleet(model), citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, money=Decimal(50 * A_SECOND))
    first = await client.post(ask(model), key=key)
    server.behave("slow_start 6000")
    replies = await asyncio.gather(*(client.post(ask(model), key=key, connection="close") for _ in range(200)))
    codes = Counter((reply.status, code_of(reply)) for reply in replies)
    assert set(codes) <= {(200, ""), (429, "budget_exceeded"), (200, "budget_exceeded")}, codes
    assert codes[200, ""] <= 8, codes
    seconds = await asyncio.to_thread(spent_seconds, citadel, [first, *replies])
    assert 30 <= seconds <= 50 + UNNOTICED, "what is there may be spent, and no more"
    assert (await until_spent(key_id, 0)).money / A_SECOND <= 50 + UNNOTICED
    assert not running(citadel, key_id), "nothing is claimed any more"
    cut = next(reply for reply in replies if code_of(reply) and reply.headers["x-citadel-attempts"] == "1")
    assert f"its budget of {50 * A_SECOND} of money of this month for this request, which may" in cut.body.decode()


def code_of(reply: Reply) -> str:
    """The code of an error, in a stream too."""
    if reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream"):
        last = reply.chunks[-1]
        return str(last["error"]["code"]) if "error" in last else ""
    return reply.code


@pytest.mark.usefixtures("by_the_second")
async def test_a_stream_ends_when_its_budget_does(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    """With what had come, and an error that says why; the server is let go, and not blamed."""
    server, key = fleet(model, tokens=400), citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, money=Decimal(2 * A_SECOND))
    server.behave("slow_chunks 50")
    reply = await client.post(streamed(model, max_tokens=400), key=key)
    *content, end = reply.chunks
    assert end["error"]["code"] == "budget_exceeded"
    assert len(content) > 10
    assert "[DONE]" not in reply.events
    [record] = await asyncio.to_thread(citadel.records, reply.identity)
    assert record["outcome"] == "budget_exceeded"
    assert Decimal("1.2") <= record["cost"] / A_SECOND <= 2 + UNNOTICED
    assert not running(citadel, key_id)
    server.behave()
    assert (await client.post(chat(model))).status == 200


@pytest.mark.usefixtures("by_the_second")
async def test_what_is_enough_is_used_to_its_end(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model).behave("slow_start 3000")
    key = citadel.key()
    await asyncio.to_thread(budget, citadel, key, money=Decimal(A_SECOND * (5 + int(HELD_UP))))
    for body in (chat(model), streamed(model)):
        reply = await client.post(body, key=citadel.key())
        assert (reply.status, code_of(reply)) == (200, "")
    reply = await client.post(chat(model), key=key)
    assert reply.status == 200
    assert 3 <= await asyncio.to_thread(spent_seconds, citadel, [reply]) <= 3 + Decimal("0.5") + Decimal(HELD_UP)


@pytest.mark.usefixtures("by_the_second")
@pytest.mark.parametrize("whose", ["another's", "the same"])
async def test_who_reads_along_goes_on_unless_it_is_the_same_budget(
    citadel: Instance, fleet: Start, model: str, client: Client, whose: str
) -> None:
    """A stream whose first client can pay no more: the rest is paid by who can, from then on."""
    fleet(model, tokens=80).behave("slow_chunks 50")
    team = f"team-{model}"
    first, second = citadel.key(team), citadel.key(team)
    if whose == "another's":
        await asyncio.to_thread(budget, citadel, first, money=Decimal(2 * A_SECOND))
        await asyncio.to_thread(budget, citadel, second, money=Decimal(60 * A_SECOND))
    else:
        await asyncio.to_thread(budget, citadel, first, team=True, money=Decimal(2 * A_SECOND))
    body = streamed(model, max_tokens=80, seed=7)
    opened = await client.session.post(CHAT, json=body, headers={"authorization": f"Bearer {first}"})
    along = await client.post(body, key=second)
    owner = Reply(opened.status, opened.headers, await opened.read())
    assert (owner.cache, along.cache) == ("miss", "coalesced")
    assert code_of(owner) == "budget_exceeded"
    seconds = await asyncio.to_thread(spent_seconds, citadel, [owner, along])
    if whose == "the same":
        assert code_of(along) == "stream_interrupted"
        assert seconds <= 2 + UNNOTICED
    else:
        assert along.events[-1] == "[DONE]"
        assert 4 <= seconds <= 5 + Decimal(HELD_UP), "each second is paid once"
    for key in (first, second):
        assert not running(citadel, key.split("_")[1])
    assert not running(citadel, f"team:{team}")
    await asyncio.to_thread(Budget.objects.filter(team__slug=team).delete)


@pytest.mark.usefixtures("by_the_second")
async def test_what_a_client_who_leaves_has_used_is_claimed_no_more(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """Of the budget of a team whose other key goes on: the claim that had grown for the one is none for the other."""
    fleet(model, tokens=160).behave("slow_chunks 50")
    team = f"team-{model}"
    first, second = citadel.key(team), citadel.key(team)
    await asyncio.to_thread(budget, citadel, first, team=True, money=Decimal(60 * A_SECOND))
    body = streamed(model, max_tokens=160, seed=7)
    owns, along = [
        await client.session.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"})
        for key in (first, second)
    ]
    for _ in range(2 * 70):
        assert await owns.content.readline()
    owns.close()
    for _ in range(2 * 90):
        assert await along.content.readline()
    assert 0 < claimed(citadel, f"team:{team}") <= (1.5 + HELD_UP) * A_SECOND, "of another second, and a bit"
    reply = Reply(along.status, along.headers, await along.read())
    assert reply.events[-1] == "[DONE]"
    seconds = await asyncio.to_thread(spent_seconds, citadel, [reply])
    assert seconds <= 5 + Decimal(HELD_UP), "the first client's are his"
    assert not running(citadel, f"team:{team}")
    await asyncio.to_thread(Budget.objects.filter(team__slug=team).delete)


@pytest.mark.usefixtures("by_the_second")
async def test_what_a_call_has_used_that_broke_off_stays_claimed_until_it_is_charged(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """Of one who waits for the whole of another's stream, went on with it, and asks anew when that breaks off."""
    server, key = fleet(model, tokens=200), citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, money=Decimal(60 * A_SECOND))
    server.behave("slow_chunks 50; die chunk:80 rst", next=1)
    body, headers = streamed(model, max_tokens=200, seed=7), {"authorization": f"Bearer {key}"}
    async with client.session.post(CHAT, json=body, headers=headers) as stream:
        assert await stream.content.readline()
        server.behave("slow_start 3000")
        heir = asyncio.create_task(client.post(chat(model, max_tokens=200, seed=7), key=key))
        await asyncio.sleep(0.3)
    await server.until(lambda log: len(calls_of(log)) == 2)
    assert claimed(citadel, key_id) >= 6 * A_SECOND, "what the first call has used, and what is usual"
    reply = await heir
    assert reply.status == 200
    assert await asyncio.to_thread(spent_seconds, citadel, [reply]) >= 6
    assert not running(citadel, key_id)
