"""Giving servers up: when, by whom, what is told, and that it is told once."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import psycopg
import pytest

from apps.orchestration import events, failover
from apps.orchestration.failover import is_over
from apps.orchestration.fleet import Server
from apps.orchestration.health.board import FAILOVERS, HEALTH, Mark
from apps.orchestration.health.conditions import Load, Record
from apps.orchestration.health.hearing import HEARING
from apps.orchestration.health.loads import HEARTBEATS
from tests.instance import Instance
from tests.orchestration.health.watchers import Watcher, configured, snapshot, told, watching

QUIET = {"interval": 60.0, "connect_interval": 60.0}
THREE = ("failover_initiated", "failover_completed", "cluster_rebalanced")


def fleet_of(names: list[str]) -> list[Server]:
    weights = (1, 3, 1)
    return [
        Server(name, "http://127.0.0.1:1", "openai", weight=weight) for name, weight in zip(names, weights, strict=True)
    ]


@pytest.fixture
def names() -> list[str]:
    prefix = secrets.token_hex(4)
    return [f"f-{prefix}-{number}" for number in range(3)]


@pytest.fixture
async def watchers(citadel: Instance, names: list[str]) -> AsyncIterator[list[Watcher]]:
    """Three probers of three servers, which say what the test says."""
    config = configured(citadel, health=QUIET, failover={"delay": 0.5, "detection": 100.0})
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(watching(citadel, config, snapshot(fleet_of(names)), fresh=first))
            for first in (True, False, False)
        ]
        now = await made[0].board.now()
        for name in names:
            await made[0].redis.call("HSET", "fleet:probes", name, turn_of_another(now))
        yield made


def turn_of_another(now: int) -> bytes:
    """Under it nobody probes a server for some seconds: at these addresses nobody is at home."""
    return msgspec.json.encode({"probe": now + 50_000, "connect": now + 50_000, "lease": now + 10_000, "holder": 1})


def types(citadel: Instance, name: str) -> list[str]:
    return [kind for kind, _, _ in told(citadel, name) if kind in THREE]


async def watch_all(watchers: list[Watcher], seconds: float) -> None:
    await asyncio.gather(*(watcher.watch(seconds) for watcher in watchers))


async def test_it_begins_after_the_delay_and_ends_with_the_recovery_each_told_once(
    citadel: Instance, watchers: list[Watcher], names: list[str]
) -> None:
    board, [gone, *left] = watchers[0].board, names
    moved = await board.number()
    await board.say(gone, "traffic", "unhealthy", "timeout")
    await watch_all(watchers, 0.3)
    assert types(citadel, gone) == []
    await watch_all(watchers, 1.2)
    assert types(citadel, gone) == list(THREE)
    data = {kind: data for kind, _, data in told(citadel, gone)}
    assert data["failover_initiated"] == {"cause": "automatic", "reason": "timeout"}
    assert data["failover_completed"] == {"cause": "automatic", "models": 1, "without_server": []}
    assert data["cluster_rebalanced"] == {"cause": "failover", "shares": {"m": {left[0]: 0.75, left[1]: 0.25}}}
    assert await board.number() > moved + 1
    await board.say(gone, "traffic", "healthy")
    await watch_all(watchers, 1.0)
    [*_, (_, _, back)] = told(citadel, gone)
    assert back == {"cause": "recovery", "shares": {"m": {gone: 0.2, left[0]: 0.6, left[1]: 0.2}}}
    assert types(citadel, gone) == [*THREE, "cluster_rebalanced"]
    assert await watchers[0].redis.call("HLEN", FAILOVERS) == 0


async def test_a_model_that_nobody_serves_any_more_is_named(
    citadel: Instance, watchers: list[Watcher], names: list[str]
) -> None:
    for name in names:
        await watchers[0].board.say(name, "traffic", "unhealthy", "timeout")
    await watch_all(watchers, 1.5)
    for name in names:
        data = {kind: data for kind, _, data in told(citadel, name)}
        assert data["failover_completed"]["without_server"] == ["m"]
        assert data["cluster_rebalanced"]["shares"] == {"m": {}}


async def test_without_a_good_sign_for_long_the_delay_is_over(citadel: Instance, names: list[str]) -> None:
    config = configured(citadel, health={**QUIET, "connect_interval": 1.0}, failover={"delay": 100.0, "detection": 6.5})
    async with watching(citadel, config, snapshot([])) as watcher:
        known, recent, old = names
        hangs = f"{old}-hangs"
        now = await watcher.board.now()
        watcher.rounds.fleet = snapshot([*fleet_of(names), Server(hangs, "http://127.0.0.1:1", "openai")])
        names = [*names, hangs]
        for name in names:
            await watcher.redis.call("HSET", "fleet:probes", name, turn_of_another(now))
        await watcher.board.say(known, "traffic", "unhealthy", "timeout")
        await watcher.board.say(recent, "probe", "unhealthy", "refused", {"failing_since": now})
        await watcher.board.say(old, "probe", "unhealthy", "refused", {"failing_since": now - 4_000})
        await watcher.board.eject(hangs, "timeout", [], since=now - 4_000)
        await watcher.watch(0.6)
        assert [types(citadel, name) for name in names] == [[], [], list(THREE), list(THREE)]


async def test_the_delay_is_over_too_where_redis_clock_was_set_back(citadel: Instance, names: list[str]) -> None:
    """Times that lie ahead are from before."""
    config = configured(citadel, health=QUIET, failover={"delay": 100.0, "detection": 300.0})
    async with watching(citadel, config, snapshot([])) as watcher:
        now = await watcher.board.now()
        watcher.rounds.fleet = snapshot(fleet_of(names))
        _recent, out, failing = names
        for name in names:
            await watcher.redis.call("HSET", "fleet:probes", name, turn_of_another(now))
            await watcher.board.say(name, "traffic", "unhealthy", "timeout")
        before = msgspec.json.encode(msgspec.structs.replace(await watcher.board.look_up(out), since=now + 60_000))
        await watcher.redis.call("HSET", HEALTH, out, before)
        await watcher.board.say(failing, "probe", "unhealthy", "refused", {"failing_since": now + 60_000})
        await watcher.watch(0.6)
        assert [types(citadel, name) for name in names] == [[], list(THREE), list(THREE)]


async def test_events_that_could_not_be_written_are_written_later(
    citadel: Instance, watchers: list[Watcher], names: list[str]
) -> None:
    mark = Mark("automatic", at=1, told=False, claimed=1)
    await watchers[0].board.say(names[0], "traffic", "unhealthy", "timeout")
    await watchers[0].redis.call("HSET", FAILOVERS, names[0], msgspec.json.encode(mark))
    await watch_all(watchers, 0.6)
    assert types(citadel, names[0]) == list(THREE)


async def test_while_the_database_is_away_servers_are_given_up_all_the_same(
    watchers: list[Watcher], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though another one's departure can't be told."""

    async def away(*_: object) -> None:
        raise psycopg.OperationalError("away")

    monkeypatch.setattr(events, "tell", away)
    await watchers[0].board.loads.heartbeat(names[1], Load(cpu=0.1))
    await watchers[0].redis.call("HSET", HEARTBEATS, names[1], b'{"cpu": 0.1, "at": 1}')
    await watchers[0].redis.call("HSET", HEARING, "since", 1, "at", await watchers[0].board.now())
    await watchers[0].board.say(names[0], "traffic", "unhealthy", "timeout")
    await watch_all(watchers, 1.5)
    assert names[0] in await watchers[0].board.given_up()
    assert (await watchers[0].board.look_up(names[1])).reason == "departed"


async def test_while_the_database_does_not_answer_all_are_given_up_at_once(
    watchers: list[Watcher], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(events, "tell", silent)
    for name in names:
        await watchers[0].board.say(name, "traffic", "unhealthy", "timeout")
    await watchers[0].watch(5.0)
    assert (await watchers[0].board.given_up()).keys() == set(names)


async def test_a_recovery_that_could_not_be_told_is_told_later_once(
    citadel: Instance, watchers: list[Watcher], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise psycopg.OperationalError("away")

    await watchers[0].board.say(names[0], "traffic", "unhealthy", "timeout")
    await watch_all(watchers, 1.5)
    with monkeypatch.context() as patch:
        patch.setattr(events, "tell", away)
        await watchers[0].board.say(names[0], "traffic", "healthy")
        await watch_all(watchers, 0.6)
    assert await watchers[0].board.given_up() == {}
    assert types(citadel, names[0]) == list(THREE)
    monkeypatch.setattr(failover, "PATIENCE_MS", 500)
    await watch_all(watchers, 1.5)
    assert types(citadel, names[0]) == [*THREE, "cluster_rebalanced"]
    assert told(citadel, names[0])[-1][2]["cause"] == "recovery"


@pytest.mark.parametrize(
    ("cause", "status", "state", "age", "over"),
    [
        ("automatic", "unhealthy", "active", 60_000, False),
        ("automatic", "degraded", "active", 0, True),
        ("manual", "healthy", "draining", 60_000, False),
        ("manual", "unhealthy", "draining", 60_000, False),
        ("manual", "healthy", "active", 60_000, True),
        ("manual", "healthy", "active", 1_000, False),
        ("manual", "healthy", "active", -1_000, False),
        ("manual", "healthy", "active", -60_000, True),
        ("manual", "healthy", None, 0, True),
        ("automatic", "unhealthy", None, 0, True),
    ],
)
def test_when_it_ends(cause: str, status: str, state: str | None, age: int, over: bool) -> None:
    server = Server("s", "http://127.0.0.1:1", "openai", state=state) if state else None
    mark = msgspec.convert({"cause": cause, "at": 1_000_000}, Mark)
    record = msgspec.convert({"status": status}, Record)
    assert is_over(mark, record, server, 1_000_000 + age) is over
