"""Budgets: parallel requests overspend nothing, what was not used comes back, and PostgreSQL knows what was spent."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import redis

from apps.gateway.inference.usage import BYTES_RESERVED_BY
from apps.gateway.models import Budget, Key, Price, Spend
from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, Client, Reply, chat, streamed
from tests.held_up import HELD_UP
from tests.instance import Instance

Start = Callable[..., Fleet]
SHIPPED_WITHIN = 5.0 + HELD_UP
ANSWER = 10
"""Tokens that the requests reserve for their answers."""


def budget(citadel: Instance, key: str, *, team: bool = False, **bounds: Any) -> str:
    """Gives a key, or its team, a budget of a month; the key's id."""
    row = Key.objects.select_related("team").get(key_id=key.split("_")[1])
    holder = {"team": row.team} if team else {"key": row}
    Budget.objects.create(**holder, **{"period": "month", **bounds})
    citadel.settle()
    return row.key_id


@pytest.fixture
def priced(citadel: Instance, model: str) -> Iterator[Price]:
    """The model costs 2 for a thousand prompt tokens and 7 for a thousand of its answers."""
    price = Price.objects.create(model=model, prompt=2000, completion=7000)
    citadel.settle()
    yield price
    price.delete()


def question(model: str, **more: Any) -> dict[str, Any]:
    return chat(model, "How much is left?", max_tokens=ANSWER, **more)


def reserved(model: str) -> int:
    """The tokens that one such request reserves."""
    return len(json.dumps(question(model))) // BYTES_RESERVED_BY + ANSWER


def spent(holder: str) -> Spend | None:
    return Spend.objects.filter(holder=holder).first()


async def until_spent(holder: str, tokens: int) -> Spend:
    """What PostgreSQL says, as soon as it knows of so many tokens."""
    begun = time.monotonic()
    while True:
        found = await asyncio.to_thread(spent, holder)
        if found and found.tokens >= tokens:
            return found
        assert time.monotonic() - begun < SHIPPED_WITHIN
        await asyncio.sleep(0.05)


def used(replies: list[Reply]) -> int:
    return sum(reply.json()["usage"]["total_tokens"] for reply in replies if reply.status == 200)


async def test_200_at_once_overspend_nothing(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    each = reserved(model)
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=50 * each)
    replies = await asyncio.gather(*(client.post(question(model), key=key) for _ in range(200)))
    let_in = [reply for reply in replies if reply.status == 200]
    assert len(let_in) >= 50, "what is there may be spent"
    assert used(let_in) <= 50 * each
    refused = [reply for reply in replies if reply.status != 200]
    assert {(reply.status, reply.code) for reply in refused} == {(429, "budget_exceeded")}
    assert "retry-after" not in refused[0].headers
    assert refused[0].headers["x-should-retry"] == "false"
    assert "This key" in refused[0].json()["error"]["message"]
    assert (await until_spent(key_id, used(let_in))).requests == 200, "those that were refused are on record too"
    while (reply := await client.post(question(model), key=key)).status == 200:  # what had been reserved came back
        let_in.append(reply)
    assert 50 * each - used(let_in) < each
    assert (await until_spent(key_id, used(let_in))).tokens == used(let_in)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_tokens": 1, "n_predict": 300}),
        (CHAT, {"max_tokens": 300, "max_completion_tokens": 1}),
        (CHAT, {"max_completion_tokens": 300, "max_tokens": 1}),
        (CHAT, {"max_tokens": 10, "min_tokens": 300}),
        (CHAT, {"max_tokens": 10, "n": 1, "n_cmpl": 30}),
        (COMPLETIONS, {"max_tokens": 1, "n_predict": 300}),
        (COMPLETIONS, {"max_tokens": 1, "max_completion_tokens": 300}),
        (COMPLETIONS, {"max_tokens": 10, "n": 1, "best_of": 30}),
        (COMPLETIONS, {"max_tokens": 0}),
        (COMPLETIONS, {"max_tokens": 1, "n_predict": 0}),
    ],
)
async def test_the_longest_answer_that_any_server_would_give_is_claimed(
    citadel: Instance, fleet: Start, model: str, client: Client, path: str, fields: dict[str, int]
) -> None:
    """Servers have their own names for it, and one name goes before another."""
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    await asyncio.to_thread(budget, citadel, key, tokens=250)
    asked = {"prompt": "?"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "?"}]}
    refused = await client.post({"model": model, **asked, **fields}, path, key=key)
    assert (refused.status, refused.code) == (429, "budget_exceeded")
    told = refused.json()["error"]["message"]
    assert re.match(r"This key has not enough left of its budget of 250 tokens.* which may take \d{3,} tokens\.", told)
    modest = {name: min(number, 1) or 1 for name, number in fields.items()}
    assert (await client.post({"model": model, **asked, **modest}, path, key=key)).status == 200


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, f'"messages":[{{"role":"user","content":"{"! " * 500}"}}]'),
        (COMPLETIONS, f'"prompt":[{",".join("1" * 500)}]'),
        (COMPLETIONS, f'"prompt":"{"? " * 500}"'),
    ],
)
async def test_what_has_more_tokens_than_it_looks_overspends_nothing_either(
    citadel: Instance, fleet: Start, model: str, client: Client, path: str, asked: str
) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    await asyncio.to_thread(budget, citadel, key, tokens=1200)
    body = f'{{"model":"{model}",{asked},"max_tokens":{ANSWER}}}'.encode()
    replies = await asyncio.gather(*(client.post(body, path, key=key) for _ in range(8)))
    assert 500 <= used(replies) <= 1200
    assert {reply.code for reply in replies if reply.status != 200} == {"budget_exceeded"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'iVBO' * 250_000}"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{'iVBO' * 250_000}"},
        {"type": "input_audio", "input_audio": {"data": "UklG" * 250_000, "format": "wav"}},
    ],
)
async def test_an_image_is_no_text(
    citadel: Instance, fleet: Start, model: str, client: Client, part: dict[str, Any]
) -> None:
    fleet(model, tokens=ANSWER).behave("usage missing")
    key = citadel.key(tokens_per_minute=5000)
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=5000)
    content = [{"type": "text", "text": "What is this?"}, part]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": ANSWER}
    assert (await client.post(body, key=key)).status == 200
    assert 2000 <= (await until_spent(key_id, 1)).tokens <= 2200, "an estimate"
    content.append(part)
    assert (await client.post(body, key=key)).code == "budget_exceeded", "each counts"


@pytest.mark.parametrize("fields", [{"n_predict": -1}, {"n_predict": -2}, {"max_tokens": -1}, {"n_cmpl": 0}])
async def test_nobody_asks_for_an_answer_without_an_end(
    fleet: Start, model: str, client: Client, fields: dict[str, int]
) -> None:
    fleet(model)
    for path, asked in ((CHAT, {"messages": [{"role": "user", "content": "?"}]}), (COMPLETIONS, {"prompt": "?"})):
        refused = await client.post({"model": model, **asked, **fields}, path)
        assert (refused.status, refused.json()["error"]["param"]) == (400, next(iter(fields)))


async def test_money_is_counted_to_the_last_billionth(
    citadel: Instance, fleet: Start, model: str, client: Client, priced: Price
) -> None:
    del priced
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, money=Decimal("0.5"))
    replies = []
    while (reply := await client.post(question(model), key=key)).status == 200:
        replies.append(reply)
    assert reply.code == "budget_exceeded"
    usages = [one.json()["usage"] for one in replies]
    cost = sum(Decimal(2 * one["prompt_tokens"] + 7 * one["completion_tokens"]) / 1000 for one in usages)
    assert Decimal("0.3") < cost <= Decimal("0.5")
    found = await until_spent(key_id, used(replies))
    assert found.money == cost
    [record] = await asyncio.to_thread(citadel.records, replies[0].headers["x-request-id"])
    assert record["cost"] == Decimal(2 * usages[0]["prompt_tokens"] + 7 * usages[0]["completion_tokens"]) / 1000


async def test_servers_of_ones_own_cost_by_the_second(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model).behave("slow_start 500")
    price = await asyncio.to_thread(Price.objects.create, model=model, server_second=1)
    try:
        await asyncio.to_thread(citadel.settle)
        for body in (chat(model), streamed(model)):
            reply = await client.post(body, key=citadel.key())
            [record] = await asyncio.to_thread(citadel.records, reply.headers["x-request-id"])
            assert Decimal("0.5") <= record["cost"] <= Decimal("0.9") + Decimal(HELD_UP)
    finally:
        await asyncio.to_thread(price.delete)


async def test_all_keys_of_a_team_spend_its_budget(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key("spenders")
    other, stranger = citadel.key("spenders"), citadel.key()
    each = reserved(model)
    await asyncio.to_thread(budget, citadel, key, team=True, tokens=each)
    try:
        assert (await client.post(question(model), key=key)).status == 200
        refused = await client.post(question(model), key=other)
        assert refused.code == "budget_exceeded"
        assert "The team 'spenders'" in refused.json()["error"]["message"]
        assert (await client.post(question(model), key=stranger)).status == 200
    finally:
        await asyncio.to_thread(Budget.objects.filter(team__slug="spenders").delete)


@pytest.mark.parametrize("behaviour", ["error 500", "error 400", "die request rst"])
async def test_what_fails_costs_nothing(
    citadel: Instance, fleet: Start, model: str, client: Client, behaviour: str
) -> None:
    server, key = fleet(model, tokens=ANSWER), citadel.key()
    each = reserved(model)
    await asyncio.to_thread(budget, citadel, key, tokens=each)
    server.behave(behaviour, next=2)
    assert (await client.post(question(model), key=key, connection="close")).status >= 400
    server.behave()
    assert (await client.post(question(model), key=key)).status == 200
    assert (await client.post(question(model), key=key)).code == "budget_exceeded"


async def test_a_stream_that_its_client_leaves_costs_what_has_come(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model, tokens=50)
    key = citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=10_000)
    body, headers = streamed(model, "[[behave:slow_chunks 60]]"), {"authorization": f"Bearer {key}"}
    async with client.session.post(CHAT, json=body, headers=headers) as stream:
        for _ in range(8):
            assert await stream.content.readline()
    found = await until_spent(key_id, 1)
    assert 0 < found.tokens < 50 + 40
    name = f"limits:running:${key_id}:month:{time.strftime('%Y-%m', time.gmtime())}-01:tokens"
    with redis.Redis.from_url(citadel.redis_url) as state:
        assert not state.exists(name), "nothing is reserved any more"


async def test_a_cached_answer_costs_nothing(citadel: Instance, fleet: Start, model: str, client: Client) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    each = reserved(model)
    await asyncio.to_thread(budget, citadel, key, tokens=each + 10)
    body = question(model, seed=3)
    assert [(await client.post(body, key=key)).cache for _ in range(3)] == ["miss", "hit", "hit"]
    assert (await client.post(question(model, seed=4), key=key)).code == "budget_exceeded"


@pytest.mark.parametrize("left", [1, 1000])
@pytest.mark.parametrize("others", [0, 1])
async def test_who_reads_along_goes_on_with_what_his_budget_has_left_for(
    citadel: Instance, fleet: Start, model: str, client: Client, left: int, others: int
) -> None:
    """Another's stream whose client leaves: else a hard stop is none for who lets others ask first."""
    server = fleet(model, tokens=60)
    server.behave("slow_chunks 80")
    team = f"team-{secrets.token_hex(4)}"
    first, key, *unbound = (citadel.key(team) for _ in range(2 + others))
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=left)
    body = streamed(model, max_tokens=60, seed=7)
    owns, *along = [
        await client.session.post(CHAT, json=body, headers={"authorization": f"Bearer {one}"})
        for one in (first, key, *unbound)
    ]
    owns.close()
    reply, *rest = [Reply(one.status, one.headers, await one.read()) for one in along]
    assert reply.cache == "coalesced"
    for one in rest:
        assert one.events[-1] == "[DONE]"
    if left == 1 and not others:
        assert reply.chunks[-1]["error"]["code"] == "stream_interrupted"
        assert "budget" in reply.chunks[-1]["error"]["message"]
    else:
        assert reply.events[-1] == "[DONE]"
    [record] = await asyncio.to_thread(citadel.records, reply.identity)
    assert record["prompt_tokens"] + record["completion_tokens"] <= left
    assert bool(record["completion_tokens"]) == (left > 1), "who comes first goes on"
    with redis.Redis.from_url(citadel.redis_url) as state:
        assert not [*state.scan_iter(f"limits:running:${key_id}*")], "nothing is claimed any more"
    server.behave()
    assert (await client.post(question(model), key=key)).status == (200 if left > 1 else 429)


async def test_who_waits_for_the_whole_of_it_asks_for_himself_then(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model, tokens=20).behave("slow_chunks 40")
    team = f"team-{secrets.token_hex(4)}"
    first, key = citadel.key(team), citadel.key(team)
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=1)
    body, headers = streamed(model, seed=8), {"authorization": f"Bearer {first}"}
    async with client.session.post(CHAT, json=body, headers=headers) as stream:
        assert await stream.content.readline()
        waits = asyncio.create_task(client.post(chat(model, seed=8), key=key))
        await asyncio.sleep(0.3)
    assert (await waits).code == "budget_exceeded"
    assert not await asyncio.to_thread(spent, key_id) or (await until_spent(key_id, 0)).tokens == 0


async def test_redis_begins_again_with_what_postgresql_knows(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    each = reserved(model)
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=2 * each)
    first = await client.post(question(model), key=key)
    await until_spent(key_id, used([first]))
    with redis.Redis.from_url(citadel.redis_url) as state:
        [name] = list(state.scan_iter(f"limits:spent:{key_id}:*"))
        assert int(state.get(name) or 0) == used([first])  # type: ignore[arg-type]
        state.delete(name)
        replies = [first]
        while (reply := await client.post(question(model), key=key)).status == 200:
            replies.append(reply)
        assert reply.code == "budget_exceeded"
        assert int(state.get(name) or 0) == used(replies) <= 2 * each  # type: ignore[arg-type]
        state.set(name, 0)  # as if it had been told nothing for a while
        begun = time.monotonic()
        while int(state.get(name) or 0) < used(replies):  # type: ignore[arg-type]
            assert time.monotonic() - begun < 15 + HELD_UP
            await asyncio.sleep(0.1)


Warnings = list[tuple[str, int]]


async def until_warned(citadel: Instance, client: Client, key_id: str, expected: Warnings) -> None:
    """Waits until these units and shares have been told of a key's budget of a month, the newest first."""
    begun = time.monotonic()
    while True:
        events = await client.get("/orchestration/events?type=budget_warning&limit=1000", key=citadel.admin_key)
        found = [one["data"] for one in events.json()["events"] if one["data"]["holder"] == key_id]
        assert all(one["period"] == "month" for one in found)
        if [(one["unit"], one["share"]) for one in found] == expected:
            return
        assert time.monotonic() - begun < 20 + HELD_UP, found
        await asyncio.sleep(0.2)


async def spend(client: Client, model: str, key: str) -> list[Reply]:
    """Asks until the budget has not enough for another one; what was answered."""
    replies = []
    while (reply := await client.post(question(model), key=key)).status == 200:
        replies.append(reply)
    assert reply.code == "budget_exceeded"
    return replies


async def bound(citadel: Instance, key_id: str, **bounds: Any) -> None:
    """Changes a key's budget."""
    await asyncio.to_thread(Budget.objects.filter(key__key_id=key_id).update, **bounds)
    await asyncio.to_thread(citadel.settle)


async def test_a_budget_that_comes_to_its_end_is_told_once(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=6 * reserved(model))
    replies = await spend(client, model, key)  # until less than one of six is left
    told: Warnings = [("tokens", 80)]
    await until_warned(citadel, client, key_id, told)
    await until_spent(key_id, used(replies))
    await bound(citadel, key_id, tokens=used(replies))
    assert not await spend(client, model, key), "nothing is charged any more"
    told.insert(0, ("tokens", 100))
    await until_warned(citadel, client, key_id, told)
    await asyncio.sleep(11)
    await until_warned(citadel, client, key_id, told)


async def test_a_budget_that_was_raised_is_told_of_again(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    """Once it comes to its end again."""
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    first = [await client.post(question(model), key=key)]
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=used(first))
    await until_spent(key_id, used(first))
    assert not await spend(client, model, key)
    told: Warnings = [("tokens", 100), ("tokens", 80)]
    await until_warned(citadel, client, key_id, told)
    await bound(citadel, key_id, tokens=8 * reserved(model))
    assert await spend(client, model, key)
    told.insert(0, ("tokens", 80))
    await until_warned(citadel, client, key_id, told)


async def test_tokens_and_money_are_told_of_each_by_itself(
    citadel: Instance, fleet: Start, model: str, client: Client, priced: Price
) -> None:
    fleet(model, tokens=ANSWER)
    key = citadel.key()
    key_id = await asyncio.to_thread(budget, citadel, key, tokens=6 * reserved(model), money=1000)
    replies = await spend(client, model, key)
    told: Warnings = [("tokens", 80)]
    await until_warned(citadel, client, key_id, told)
    row = await until_spent(key_id, used(replies))
    await bound(citadel, key_id, money=row.money)
    assert not await spend(client, model, key)
    told[:0] = [("money", 100), ("money", 80)]
    await until_warned(citadel, client, key_id, told)
