"""Who falls silent and who has too much to do is told once, however many look."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from apps.gateway.limits.admission import ADMITTED, WAITS
from apps.gateway.limits.scripts import ADMIT
from apps.orchestration.fleet import Server
from apps.orchestration.health.conditions import Load
from apps.orchestration.health.hearing import Hearing
from apps.orchestration.health.pace import WARM, Key
from tests.instance import Instance
from tests.orchestration.health.watchers import Watcher, configured, snapshot, told, watching

HEALTH = {"interval": 60.0, "fast_interval": 60.0, "connect_interval": 60.0, "heartbeat_interval": 0.3}


@pytest.fixture
def name() -> str:
    return f"v-{secrets.token_hex(4)}"


@pytest.fixture
async def watchers(citadel: Instance, name: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Watcher]]:
    """Two probers of one server, which they don't probe."""
    monkeypatch.setattr("apps.orchestration.health.vigil.LOOK_AT_QUEUES", 0.01)
    config = configured(citadel, health=HEALTH, failover={"delay": 100.0, "detection": 100.0})
    fleet = snapshot([Server(name, "http://127.0.0.1:1", "openai")])
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(watching(citadel, config, fleet, fresh=first)) for first in (True, False)
        ]


async def watch(watchers: list[Watcher], seconds: float, *, hearing: float | None = 5.0) -> None:
    """With a worker that takes heartbeats; `hearing`: seconds in which a heartbeat should have come to it."""
    worker = Hearing(watchers[0].redis, hearing) if hearing else None
    if worker:
        worker.start()
    await asyncio.gather(*(watcher.watch(seconds) for watcher in watchers))
    if worker:
        worker.stop()


def told_of(citadel: Instance, name: str, kind: str) -> list[dict[str, Any]]:
    return [data for event, _, data in told(citadel, name) if event == kind]


async def test_who_sent_heartbeats_and_is_silent_has_departed_until_the_next(
    citadel: Instance, watchers: list[Watcher], name: str
) -> None:
    board = watchers[0].board
    await watch(watchers, 1.2)
    assert (await board.look_up(name)).status == "healthy"  # it has never sent any
    for _ in range(4):
        await board.loads.heartbeat(name, Load(cpu=0.1))
        await watch(watchers, 0.3)
    assert (await board.look_up(name)).status == "healthy"
    await watch(watchers, 1.5)
    record = await board.look_up(name)
    assert (record.status, record.source, record.reason) == ("unhealthy", "heartbeat", "departed")
    assert len(told_of(citadel, name, "server_departed")) == 1
    await board.loads.heartbeat(name, Load(cpu=0.1))
    await watch(watchers, 0.4)
    assert (await board.look_up(name)).status == "healthy"
    assert told_of(citadel, name, "server_registered") == [{"returned": True}]
    changes = told_of(citadel, name, "health_status_changed")
    assert [change["to"] for change in changes] == ["unhealthy", "healthy"]


@pytest.mark.parametrize("hours", [3 / 3600, 1.0, 0.0])
async def test_who_registered_itself_and_departed_long_ago_is_taken_out(
    citadel: Instance, name: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not who came by an operator's word, nor whom an operator has taken out of service."""
    from apps.orchestration.models import Server as Row

    monkeypatch.setattr("apps.orchestration.health.vigil.FORGET_EVERY", 0.1)
    config = configured(citadel, health=HEALTH, registry={"forget_departed": hours})
    own, put_in, drained = names = [name, f"{name}-put-in", f"{name}-drained"]
    for one, key, state in ((own, "k", "active"), (put_in, "", "active"), (drained, "k", "draining")):
        Row.objects.create(server_id=one, hostname="127.0.0.1", port=1, kind="http", registered_by=key, state=state)
    servers = [Server(one, "http://127.0.0.1:1", "http", registered_by="" if one == put_in else "k") for one in names]
    try:
        async with watching(citadel, config, snapshot(servers)) as watcher:
            for one in names:
                await watcher.board.loads.heartbeat(one, Load())
            await watch([watcher], 1.8)
            assert Row.objects.filter(server_id__in=names).count() == len(names), "they have just departed"
            await watch([watcher], 4.5)
            left = set(Row.objects.filter(server_id__in=names).values_list("server_id", flat=True))
            assert left == ({put_in, drained} if hours == 3 / 3600 else set(names))
            known = await watcher.board.loads.heartbeats()
            assert (own in known) == (own in left)
        reasons = [data["reason"] for data in told_of(citadel, own, "server_departed")]
        assert reasons == (["silent"] if own in left else ["silent", "deregistered"])
        assert all(len(told_of(citadel, one, "server_departed")) == 1 for one in (put_in, drained))
    finally:
        Row.objects.filter(server_id__in=names).delete()


async def test_who_registers_again_is_back_if_it_has_ever_sent_a_heartbeat(watchers: list[Watcher], name: str) -> None:
    board = watchers[0].board
    await board.loads.renew(name)
    assert name not in await board.loads.heartbeats()
    await board.loads.heartbeat(name, Load(cpu=0.1))
    await watch(watchers, 2.5)
    assert (await board.look_up(name)).reason == "departed"
    await board.loads.renew(name)
    await watch(watchers, 0.4)
    assert (await board.look_up(name)).status == "healthy"
    assert (await board.loads.read())[name].cpu is None, "that was what it had to do before it was silent"


async def test_what_webhooks_tell_of_load_leaves_what_probes_know(watchers: list[Watcher], name: str) -> None:
    """A model that a server has not in its memory is not taken to be there because somebody told of its CPU."""
    loads = watchers[0].board.loads
    await loads.observe(name, Load(cpu=0.9, queue=2, models=("one",)))
    await loads.report(name, Load(cpu=0.4))
    known = (await loads.read())[name]
    assert (known.cpu, known.queue, known.models) == (0.4, 2, ("one",))
    await loads.observe(name, Load(queue=3, models=()))
    known = (await loads.read())[name]
    assert (known.cpu, known.queue, known.models) == (0.4, 3, ())
    await loads.heartbeat(name, Load(cpu=0.1))
    assert (await loads.read())[name].cpu == 0.1, "the server itself knows best"
    await watchers[0].board.forget(name)
    assert name not in await loads.read()


async def test_silence_that_nobody_could_have_heard_is_none(
    citadel: Instance, watchers: list[Watcher], name: str
) -> None:
    """Citadel, or the Redis that keeps heartbeats, has been away for longer than three of them."""
    board, interval = watchers[0].board, HEALTH["heartbeat_interval"]
    await board.loads.heartbeat(name, Load(cpu=0.1))
    await watch(watchers, 0.3, hearing=interval)
    await watch(watchers, 1.5, hearing=None)
    assert (await board.look_up(name)).status == "healthy"
    await watch(watchers, 0.5, hearing=interval)
    assert (await board.look_up(name)).status == "healthy"
    await watch(watchers, 2.0, hearing=interval)
    assert (await board.look_up(name)).reason == "departed", "it could be heard for three intervals again"
    await watch(watchers, 1.0, hearing=None)
    await watch(watchers, 0.5, hearing=interval)
    assert (await board.look_up(name)).reason == "departed", "nobody has heard it yet"
    assert len(told_of(citadel, name, "server_departed")) == 1


async def test_while_the_database_is_away_who_departs_and_comes_back_does_so_all_the_same(
    citadel: Instance, watchers: list[Watcher], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    from apps.orchestration import events
    from apps.orchestration.health import vigil

    async def away(*_: object) -> None:
        raise psycopg.OperationalError("away")

    monkeypatch.setattr(vigil, "PATIENCE_MS", 300)
    board = watchers[0].board
    with monkeypatch.context() as patch:
        for module, what in ((events, "tell"), (vigil, "tell_changes")):
            patch.setattr(module, what, away)
        await board.loads.heartbeat(name, Load(cpu=0.1))
        await watch(watchers, 2.5)
        assert (await board.look_up(name)).reason == "departed"
        for _ in range(4):
            await board.loads.heartbeat(name, Load(cpu=0.1))
            await watch(watchers, 0.3)
        assert (await board.look_up(name)).status == "healthy"
        await watch(watchers, 2.5)
        assert (await board.look_up(name)).reason == "departed", "and again"
    await watch(watchers, 1.0)
    assert len(told_of(citadel, name, "server_departed")) == 1


async def test_a_gap_in_which_one_heartbeat_may_be_lost_excuses_nobody(watchers: list[Watcher]) -> None:
    """A rolling restart: no server falls silent for three intervals by that."""
    redis = watchers[0].redis
    hearing = Hearing(redis, 2.0)

    async def heard_for(later: float = 0.0) -> int:
        return await hearing.heard_for(await watchers[0].board.now() + round(later * 1000))

    assert await heard_for() == 0, "nobody has ever heard"
    for _ in range(3):
        await hearing.hear()
        await asyncio.sleep(0.4)
    assert 1200 <= await heard_for() < 2000
    assert await heard_for(later=2.1) == 0, "nobody hears now"
    await redis.call("HINCRBY", "fleet:hearing", "at", -5000)  # as after five seconds
    await hearing.hear()
    assert await heard_for() < 1000


async def test_what_can_not_be_told_is_told_later(
    citadel: Instance, watchers: list[Watcher], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away while a server falls silent and has too much to do."""
    import psycopg

    from apps.orchestration import events
    from apps.orchestration.health import vigil

    def away(*_: object) -> None:
        raise psycopg.OperationalError("away")

    monkeypatch.setattr(vigil, "PATIENCE_MS", 300)
    await watchers[0].board.loads.heartbeat(name, Load(cpu=0.99))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(events, "tell", away)
        meanwhile.setattr(events, "in_turn", away)
        await watch(watchers, 1.5)
    assert not told(citadel, name)
    await watch(watchers, 1.5)
    assert len(told_of(citadel, name, "server_departed")) == 1
    figures = [data["figure"] for data in told_of(citadel, name, "load_threshold_exceeded")]
    assert sorted(figures) == ["cpu", "unavailable"]
    assert [data["to"] for data in told_of(citadel, name, "health_status_changed")] == ["unhealthy"]


@pytest.mark.parametrize(
    ("figure", "low", "around", "high", "threshold"),
    [("cpu", 0.5, 0.84, 0.9, 0.85), ("memory", 0.5, 0.79, 0.9, 0.8), ("queue", 10, 49, 51, 50)],
)
async def test_a_bound_is_told_once_when_it_is_crossed(
    citadel: Instance,
    watchers: list[Watcher],
    name: str,
    figure: str,
    low: float,
    around: float,
    high: float,
    threshold: float,
) -> None:
    def now() -> int:
        return len(told_of(citadel, name, "load_threshold_exceeded"))

    for value, times in ((low, 0), (around, 0), (high, 1), (around, 1), (high, 1), (low, 1), (high, 2)):
        await watchers[0].board.loads.heartbeat(name, Load(**{figure: value}))
        await watch(watchers, 0.4)
        assert now() == times, value
    for data in told_of(citadel, name, "load_threshold_exceeded"):
        assert data == {"figure": figure, "value": high, "threshold": threshold}


async def until_told(citadel: Instance, watchers: list[Watcher], name: str, events: int) -> None:
    """Until so many bounds have been told as crossed, and no more."""
    for _ in range(40):
        await watch(watchers, 0.2)
        if len(told_of(citadel, name, "load_threshold_exceeded")) >= events:
            break
    assert len(told_of(citadel, name, "load_threshold_exceeded")) == events


async def test_who_waits_in_citadel_for_a_place_is_part_of_the_queue(
    citadel: Instance, watchers: list[Watcher], name: str
) -> None:
    """Where a server has a limit the queue forms in Citadel, not on the server."""
    wants = [(1, f"ticket{i:03}", "m", f"team{i % 2}", 1, 100, 600_000, 1, 0, name, 1) for i in range(46)]
    asked = [part for want in wants for part in (0, 0, 0, *want)]
    verdicts = await watchers[0].redis.script(ADMIT, ["worker", 60_000, *(0,) * 9, len(wants), *asked])
    assert [verdict[0] for verdict in verdicts[1:]] == [ADMITTED, *[WAITS] * 45]
    await watchers[0].board.loads.heartbeat(name, Load(queue=3))
    await watch(watchers, 0.4)
    assert not told_of(citadel, name, "load_threshold_exceeded")
    await watchers[0].board.loads.heartbeat(name, Load(queue=6))
    await until_told(citadel, watchers, name, 1)
    [data] = told_of(citadel, name, "load_threshold_exceeded")
    assert data == {"figure": "queue", "value": 51, "threshold": 50}


async def test_a_server_that_is_out_is_told_too(citadel: Instance, watchers: list[Watcher], name: str) -> None:
    await watchers[0].board.say(name, "traffic", "unhealthy", "timeout")
    await watch(watchers, 0.6)
    assert [data["figure"] for data in told_of(citadel, name, "load_threshold_exceeded")] == ["unavailable"]


def record_attempts(citadel: Instance, name: str) -> None:
    """Slow ones, and more failed than may be."""
    import psycopg
    from psycopg.types.json import Jsonb

    attempts = [{"server": name, "outcome": "ok", "ms": 3500.0}] * 18 + [
        {"server": name, "outcome": "timeout", "ms": 1.0}
    ] * 3
    with psycopg.connect(citadel.database_url) as connection:
        connection.execute(
            "INSERT INTO audit_record (request_id, at, team, key_id, door, model, server, attempts, status, outcome, "
            "stream, cache, prompt_tokens, completion_tokens, request_bytes, answer_bytes, total_ms) "
            "VALUES (%s, now(), '', '', '', '', %s, %s, 200, 'ok', false, '', 0, 0, 0, 0, 1)",
            (f"test-{name}", name, Jsonb(attempts)),
        )


async def test_the_requests_of_the_last_minutes_are_looked_at(
    citadel: Instance, watchers: list[Watcher], name: str
) -> None:
    """As the records tell them, attempt by attempt."""
    record_attempts(citadel, name)
    await watch(watchers, 0.6)
    found = {data["figure"]: data["value"] for data in told_of(citadel, name, "load_threshold_exceeded")}
    assert found == {"failed": pytest.approx(3 / 21, abs=0.001), "response_ms": 3500.0}


async def test_after_a_quiet_time_the_next_trouble_is_told(
    citadel: Instance, watchers: list[Watcher], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few requests there is no average that could come down."""
    import psycopg

    from apps.orchestration.health import vigil

    monkeypatch.setattr(vigil, "LOOK_AT_FIGURES", 0.2)

    async def trouble_and_quiet(events: int) -> None:
        record_attempts(citadel, name)
        await until_told(citadel, watchers, name, events)
        await watch(watchers, 0.7)
        with psycopg.connect(citadel.database_url) as connection:
            connection.execute("DELETE FROM audit_record WHERE server = %s", (name,))
        await watch(watchers, 0.7)

    await trouble_and_quiet(2)
    await trouble_and_quiet(2)  # that was no quiet time worth the name
    for figure in ("failed", "response_ms"):
        assert await watchers[0].redis.call("ZSCORE", vigil.HEARD, f"{name} {figure}")
        await watchers[0].redis.call("ZADD", vigil.HEARD, 0, f"{name} {figure}")  # as after five minutes
    await watch(watchers, 0.7)
    await trouble_and_quiet(4)


async def test_events_are_kept_for_their_time_alone(citadel: Instance, watchers: list[Watcher], name: str) -> None:
    import psycopg

    with psycopg.connect(citadel.database_url) as connection:
        for days in (91, 89):
            connection.execute(
                "INSERT INTO orchestration_event (type, server_id, at, data) "
                "VALUES ('server_drained', %s, now() - make_interval(days => %s), '{}')",
                (f"{name}-{days}", days),
            )
    await watch(watchers, 0.5)
    assert not told(citadel, f"{name}-91")
    assert told(citadel, f"{name}-89")


async def test_who_left_the_registry_is_forgotten(citadel: Instance, watchers: list[Watcher], name: str) -> None:
    [watcher, _] = watchers
    await watcher.board.troubles.count_failure(f"{name}-gone, silently")
    await watcher.board.tell_answers({Key("m", f"{name}-gone, late", False): {3: 1}})
    for server_id in (name, f"{name}-gone"):
        await watcher.board.loads.heartbeat(server_id, Load(cpu=0.1))
        await watcher.board.say(server_id, "traffic", "unhealthy", "timeout")
    await watcher.redis.call("DEL", "fleet:turn:tidy")
    await watcher.watch(0.3)
    assert len(await watcher.board.read()) == 2, "it may only just have come"
    async with asyncio.timeout(10):
        while len(await watcher.board.read()) > 1:
            await watcher.redis.call("DEL", "fleet:turn:tidy")
            await watcher.watch(0.3)
    assert list(await watcher.board.read()) == list(await watcher.board.loads.heartbeats()) == [name]
    assert await watcher.board.troubles.failing() == set()
    assert await watcher.board.known() == {name}


async def test_of_a_model_that_left_a_server_nothing_is_kept(watchers: list[Watcher], name: str) -> None:
    """As adapters do that are loaded for one job. Of what the server keeps all is, also while it is out."""
    [watcher, _] = watchers
    stays, adapter = Key("m", name, False), Key("adapter", name, True)
    for key in (stays, adapter):
        await watcher.board.tell_answers({key: {3: WARM}})
    await watcher.board.say(name, "probe", "unhealthy", "refused")
    await watcher.redis.call("DEL", "fleet:turn:tidy")
    await watcher.watch(0.3)
    assert await watcher.board.measured() == {stays, adapter}, "it may only just have come"
    async with asyncio.timeout(10):
        while adapter in await watcher.board.measured():
            await watcher.redis.call("DEL", "fleet:turn:tidy")
            await watcher.watch(0.3)
    assert await watcher.board.measured() == (await watcher.board.paces()).keys() == {stays}
