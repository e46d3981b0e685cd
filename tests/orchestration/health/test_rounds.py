"""A round of probes on real sockets: all servers at once, none twice at a time, and what follows for each."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from itertools import chain
from typing import Any

import pytest

from apps.orchestration.fleet import EMPTY, Server
from apps.orchestration.health import conclusion, examiner
from apps.orchestration.health.board import Board
from apps.orchestration.health.conclusion import conclude, thresholds_of
from apps.orchestration.health.conditions import Load
from apps.orchestration.health.examiner import examine_now
from apps.orchestration.health.loads import load_lasts
from apps.orchestration.health.probes import Probes
from apps.orchestration.health.schedule import TAKE, Schedule
from apps.orchestration.health.states import Outcome
from citadel.database import make_pool
from citadel.redis import RedisUnavailable
from tests.fleet.control import Fleet
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.health.watchers import EVERY, Watcher, configured, snapshot, told, watching

FAST = {
    "interval": 0.5,
    "fast_interval": 0.2,
    "connect_interval": 0.3,
    "timeout": 1.0,
    "slow_ms": 300,
}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"


class Host:
    """A server that counts the requests it is working on; one that hangs reads and never answers."""

    def __init__(self, name: str, *, hangs: bool) -> None:
        self.name = name
        self.hangs = hangs
        self.port = 0
        self.at_once = self.peak = self.requests = self.connections = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if not await reader.readline():
                return  # a bare connection
            self.requests += 1
            self.at_once += 1
            self.peak = max(self.peak, self.at_once)
            if self.hangs:
                await reader.read(100_000)
                await reader.read()
            else:
                writer.write(ANSWER)
                await writer.drain()
        finally:
            self.at_once -= 1 if self.requests else 0
            writer.close()

    @property
    def server(self) -> Server:
        return Server(self.name, f"http://127.0.0.1:{self.port}", "openai")


@asynccontextmanager
async def hosts(good: int, hanging: int) -> AsyncIterator[list[Host]]:
    """So many hosts, each with a port of its own."""
    prefix = secrets.token_hex(3)
    made = [Host(f"{prefix}-{number}", hangs=number < hanging) for number in range(good + hanging)]
    async with AsyncExitStack() as stack:
        for host in made:
            listener = await asyncio.start_server(host.take, "127.0.0.1", 0)
            stack.callback(listener.close)
            host.port = listener.sockets[0].getsockname()[1]
        yield made


@pytest.mark.faults
async def test_a_round_of_200_servers_of_which_40_hang_takes_no_longer_than_one_that_hangs(citadel: Instance) -> None:
    """By the usual settings; and the others are not probed later for it."""
    async with hosts(160, 40) as all_hosts, AsyncExitStack() as stack:
        fleet = snapshot(host.server for host in all_hosts)
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health={}), fleet))
        await watcher.watch(0.1)
        await asyncio.sleep(2.0)
        begun = time.monotonic()
        assert await watcher.rounds.tick(EVERY) is not None
        finished: dict[str, float] = {}
        while len(finished) < len(all_hosts):
            for name in await watcher.board.read():
                finished.setdefault(name, time.monotonic() - begun)
            await asyncio.sleep(0.05)
            assert time.monotonic() - begun < 12 + HELD_UP
        assert max(finished[host.name] for host in all_hosts if not host.hangs) < 3 + HELD_UP
        for host in all_hosts:
            said = await watcher.probe_of(host.name)
            assert said["consecutive_failures"] == (1 if host.hangs else 0), host.name
            assert said["consecutive_successes"] == (0 if host.hangs else 1)
            assert host.requests == 1 or (host.hangs and not host.requests), "on a busy machine one is not even reached"
        assert sum(host.requests for host in all_hosts) > 0.95 * len(all_hosts), "but nearly all are"


async def test_several_probers_never_probe_a_server_twice_at_a_time(citadel: Instance) -> None:
    async with hosts(6, 2) as all_hosts, AsyncExitStack() as stack:
        fleet, config = snapshot(host.server for host in all_hosts), configured(citadel, health=FAST)
        watchers = [
            await stack.enter_async_context(watching(citadel, config, fleet, fresh=first))
            for first in (True, False, False)
        ]
        taken = await asyncio.gather(*(watcher.watch(4.0) for watcher in watchers))
        twice = [number for number, count in Counter(chain(*taken)).items() if count > 1]
        assert not twice
        assert min(map(len, taken)) > 0
        for host in all_hosts:
            assert host.peak == 1
            assert 3 <= host.requests <= (6 if host.hangs else 10), host.name


@pytest.fixture
async def one(citadel: Instance) -> AsyncIterator[tuple[Watcher, Fleet, str]]:
    """A watcher with fast settings, a test server and its id."""
    name = f"one-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Fleet.start(kind="llamacpp", models=["m"]))
        fleet = snapshot([Server(name, server.url, "llamacpp")])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=FAST), fleet))
        yield watcher, server, name


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("error 500", "status_500"),
        ("error problem=loading", "status_503"),
        ("hang", "timeout"),
        ("hang at=headers", "timeout"),
        ("die request rst", "disconnected"),
        ({"json_is": {"value": '{"status": "error"}'}}, "says_so"),
    ],
)
async def test_what_is_no_good_sign_makes_it_unhealthy_and_good_ones_bring_it_back(
    citadel: Instance, one: tuple[Watcher, Fleet, str], behaviour: str, reason: str
) -> None:
    watcher, server, name = one
    await watcher.until(name, "healthy")
    server.behave(behaviour, path="/health")
    record = await watcher.until(name, "unhealthy")
    assert (record.source, record.reason) == ("probe", reason)
    server.behave()
    server.clear()
    await watcher.until(name, "healthy")
    assert len([seen for seen in server.log(probes=True) if seen.path == "/health"]) >= 5
    assert (await watcher.probe_of(name))["consecutive_successes"] >= 5
    await asyncio.sleep(0.2)
    changes = [data for kind, _, data in told(citadel, name) if kind == "health_status_changed"]
    assert [(change["from"], change["to"]) for change in changes] == [
        ("healthy", "unhealthy"),
        ("unhealthy", "healthy"),
    ]
    assert changes[0]["reason"] == reason
    assert watcher.learned == [name]


@pytest.mark.parametrize(("critical_ms", "reason"), [(60_000, "slow"), (350, "critical")])
async def test_slow_is_degraded(citadel: Instance, critical_ms: int, reason: str) -> None:
    name = f"one-{secrets.token_hex(4)}"
    health = {**FAST, "timeout": 10.0, "critical_ms": critical_ms}
    async with Fleet.start(kind="llamacpp", models=["m"]) as server, AsyncExitStack() as stack:
        server.behave("slow_start 400", path="/health")
        fleet = snapshot([Server(name, server.url, "llamacpp")])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=health), fleet))
        record = await watcher.until(name, "degraded")
        assert record.reason == reason
        assert record.memory("probe")["response_ms"] >= 400
        server.behave()
        await watcher.until(name, "healthy")


async def test_a_silent_death_is_found_by_bare_connections(citadel: Instance) -> None:
    """Long before the next probe would come; and so is the return."""
    name = f"one-{secrets.token_hex(4)}"
    health = {**FAST, "interval": 60.0}
    async with Fleet.start(kind="llamacpp", models=["m"]) as server, AsyncExitStack() as stack:
        fleet = snapshot([Server(name, server.url, "llamacpp")])
        config = configured(citadel, health=health, timeouts={"server_connect": 0.5})
        watcher = await stack.enter_async_context(watching(citadel, config, fleet))
        await watcher.watch(1.5)
        assert len(server.log(probes=True)) == 3, "one probe, of the health page and twice of the load"
        for die, reason in ((server.kill, "refused"), (lambda: server.behave("silent_host"), "connect_timeout")):
            die()
            assert (await watcher.until(name, "unhealthy", within=9 + HELD_UP)).reason == reason
            server.behave() if server.alive else server.restart()
            await watcher.until(name, "healthy")


async def test_who_comes_before_it_listens_is_asked_what_it_is_once_it_does(citadel: Instance) -> None:
    """Such a server was never unhealthy, so none of its probes brings it back."""
    health = {**FAST, "interval": 60.0, "fast_interval": 60.0}
    async with hosts(2, 0) as [host, known], AsyncExitStack() as stack:
        unknown = Server(host.name, host.server.url, "http", known=False)
        fleet = snapshot([unknown, known.server])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=health), fleet))
        for _ in range(40):
            await watcher.watch(0.2)
            if watcher.learned:
                break
        await watcher.watch(1.0)
        assert watcher.learned == [host.name], "once, though it is not found out yet"


async def test_what_nobody_finds_out_is_asked_less_and_less_until_it_moves(citadel: Instance) -> None:
    """A server that no gateway knows is not asked each ten seconds for ever."""
    health = {**FAST, "connect_interval": 60.0}
    async with hosts(2, 0) as [host, elsewhere], AsyncExitStack() as stack:
        unknown = Server(host.name, host.server.url, "http", known=False)
        config = configured(citadel, health=health)
        watcher = await stack.enter_async_context(watching(citadel, config, snapshot([unknown])))
        waits = []
        for count in range(1, 8):
            await until_learned(watcher, count)
            [key] = await watcher.redis.call("KEYS", f"fleet:turn:kind:{host.name}*")
            waits.append(round(await watcher.redis.call("PTTL", key) / 1000))
            await watcher.redis.call("DEL", key)  # as if the time had passed
        for found, meant in zip(waits, (10, 20, 40, 80, 160, 300, 300), strict=True):
            assert meant - 3 <= found <= meant
        await until_learned(watcher, 8)
        await watcher.watch(1.0)
        assert len(watcher.learned) == 8
        watcher.rounds.fleet = snapshot([Server(host.name, elsewhere.server.url, "http", known=False)])
        await until_learned(watcher, 9)


async def test_how_often_one_has_been_asked_is_not_kept_for_ever(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the prober dies as soon as it has counted."""
    server = Server(f"one-{secrets.token_hex(4)}", "http://127.0.0.1:1", "http", known=False)
    async with watching(citadel, configured(citadel, health={}), snapshot([server])) as watcher:
        call = watcher.redis.call

        async def dying(command: str, *arguments: Any) -> Any:
            if command == "PEXPIRE":
                raise RedisUnavailable
            return await call(command, *arguments)

        with monkeypatch.context() as patch, pytest.raises(RedisUnavailable):
            patch.setattr(watcher.rounds._board.redis, "call", dying)
            await watcher.rounds._examiner._take_question(server)
        key = f"fleet:asked:kind:{server.server_id} {server.url}"
        assert (await call("GET", key), await call("PTTL", key) > 0) == (b"1", True)


async def test_what_a_server_is_that_nobody_finds_out_is_settled_at_last(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examiner, "SETTLED_AFTER", 2)
    async with hosts(1, 0) as [host], AsyncExitStack() as stack:
        fleet = snapshot([Server(host.name, host.server.url, "http", known=False)])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=FAST), fleet))
        await until_learned(watcher, 1)
        assert watcher.settled == []
        [key] = await watcher.redis.call("KEYS", f"fleet:turn:kind:{host.name}*")
        await watcher.redis.call("DEL", key)
        await until_learned(watcher, 2)
        assert watcher.settled == [host.name]


async def until_learned(watcher: Watcher, count: int) -> None:
    """Until so many questions of what servers are have been asked."""
    for _ in range(40):
        await watcher.watch(0.2)
        if len(watcher.learned) >= count:
            break
    assert len(watcher.learned) == count


async def test_a_name_leads_to_a_server_by_any_of_its_addresses(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `localhost` does where the server listens on IPv4 alone."""
    health = {**FAST, "interval": 60.0, "fast_interval": 60.0}
    name = f"one-{secrets.token_hex(4)}"
    monkeypatch.setattr("citadel.names.look_up", lambda _host: (ip_address("::1"), ip_address("127.0.0.1")))
    async with hosts(1, 0) as [host], AsyncExitStack() as stack:
        fleet = snapshot([Server(name, f"http://both.example:{host.port}", "openai")])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=health), fleet))
        for _ in range(20):
            await watcher.watch(0.5)
            if host.connections >= 3:
                break
        assert host.connections >= 3
        said = await watcher.probe_of(name)
        assert (said.get("status", "healthy"), said.get("troubles", 0)) == ("healthy", 0)


async def test_what_the_traffic_says_of_connections_is_disproved_by_probes(one: tuple[Watcher, Fleet, str]) -> None:
    watcher, _, name = one
    for reason, returns in (("refused", True), ("no_address", True), ("disconnected", False), ("timeout", False)):
        await watcher.until(name, "healthy")
        await watcher.board.say(name, "traffic", "unhealthy", reason)
        if returns:
            await watcher.until(name, "healthy")
            assert (await watcher.probe_of(name))["consecutive_successes"] >= 5
        else:
            await watcher.watch(2.0)
            assert (await watcher.board.look_up(name)).status == "unhealthy"
            await watcher.board.say(name, "traffic", "healthy")


async def test_connections_that_broke_off_since_the_server_was_killed_are_disproved_too(
    one: tuple[Watcher, Fleet, str],
) -> None:
    watcher, server, name = one
    await watcher.until(name, "healthy")
    await watcher.board.say(name, "traffic", "unhealthy", "disconnected")
    server.kill()
    await watcher.watch(1.0)
    server.restart()
    await watcher.until(name, "healthy")
    assert (await watcher.probe_of(name))["consecutive_successes"] >= 5


async def test_that_requests_fail_now_and_then_is_forgotten_when_no_worker_says_so_any_more(
    one: tuple[Watcher, Fleet, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, _, name = one
    await watcher.until(name, "healthy")
    await watcher.board.say(name, "traffic", "degraded", "failures")
    await watcher.watch(2.0)
    assert (await watcher.board.look_up(name)).status == "degraded"
    monkeypatch.setattr(conclusion, "FORGOTTEN_MS", 1000)
    await watcher.until(name, "healthy")


async def test_whom_the_traffic_puts_out_is_probed_at_once(citadel: Instance) -> None:
    name = f"one-{secrets.token_hex(4)}"
    health = {**FAST, "interval": 60.0, "connect_interval": 60.0}
    async with Fleet.start(models=["m"]) as server, AsyncExitStack() as stack:
        fleet = snapshot([Server(name, server.url, "openai")])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=health), fleet))
        await watcher.watch(0.5)
        server.clear()
        await watcher.board.say(name, "traffic", "unhealthy", "timeout")
        await watcher.watch(0.5)
        assert len(server.log(probes=True)) == 1
        await watcher.watch(0.5)
        assert len(server.log(probes=True)) == 1


@pytest.mark.parametrize(
    ("state", "probed"), [("active", True), ("draining", True), ("disabled", False), ("pending", False)]
)
async def test_who_is_watched(citadel: Instance, state: str, probed: bool) -> None:
    async with hosts(1, 0) as [host], AsyncExitStack() as stack:
        fleet = snapshot([Server(host.name, host.server.url, "openai", state=state)])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=FAST), fleet))
        await watcher.watch(0.5)
        assert bool(host.requests) is probed


async def test_a_probe_asks_what_the_server_has_for_it_and_says_who_it_is(citadel: Instance) -> None:
    name = f"one-{secrets.token_hex(4)}"
    async with Fleet.start(kind="vllm", models=["m"], api_key="secret") as server, AsyncExitStack() as stack:
        row = Server(
            name, server.url, "http", api_key="secret", health_endpoint="/version", metrics_endpoint="/metrics"
        )
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=FAST), snapshot([row])))
        async with asyncio.timeout(10):
            while len(server.log(probes=True)) < 2:
                await watcher.watch(0.2)
        assert [seen.path for seen in server.log(probes=True)][:2] == ["/version", "/metrics"]
        assert {seen.headers["authorization"] for seen in server.log(probes=True)} == {"Bearer secret"}


async def test_a_server_that_is_removed_while_it_is_probed_does_not_come_back_on_the_board(citadel: Instance) -> None:
    async with hosts(0, 1) as [host], AsyncExitStack() as stack:
        config = configured(citadel, health=FAST)
        watcher = await stack.enter_async_context(watching(citadel, config, snapshot([host.server])))
        async with asyncio.timeout(10):
            while not host.at_once:
                await watcher.watch(0.1)
        watcher.rounds.fleet = EMPTY
        async with asyncio.timeout(10):
            while host.at_once:
                await watcher.watch(0.1)
        await watcher.watch(0.5)
        assert await watcher.board.read() == {}


async def test_a_fleet_that_changes_while_a_tick_is_taken_spoils_nothing(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosts(2, 0) as all_hosts, AsyncExitStack() as stack:
        fleet = snapshot(host.server for host in all_hosts)
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=FAST), fleet))
        take = Schedule.take

        async def take_and_lose(schedule: Schedule, *arguments: Any) -> Any:
            turn = await take(schedule, *arguments)
            if turn and turn.probes:
                watcher.rounds.fleet = EMPTY
            return turn

        monkeypatch.setattr(Schedule, "take", take_and_lose)
        await watcher.watch(1.0)
        assert sum(host.requests for host in all_hosts) >= 1, "what was taken is done"


ASLEEP = {"json_is": {"value": '{"is_sleeping": true}'}}


@pytest.mark.parametrize("page", ["/slots", "/metrics"])
@pytest.mark.parametrize(
    ("properties", "models"), [(ASLEEP, ()), ("error 401", ("m",)), ("error 503", ("m",))], ids=("asleep", "401", "503")
)
async def test_a_llamacpp_tells_how_busy_it_is_where_that_does_not_wake_it(
    citadel: Instance, page: str, properties: Any, models: tuple[str, ...]
) -> None:
    """Both pages wake a model that sleeps; one that is known to be awake they tell of where they are named."""
    name = f"one-{secrets.token_hex(4)}"
    async with Fleet.start(kind="llamacpp", models=["m"]) as server, AsyncExitStack() as stack:
        fleet = snapshot([Server(name, server.url, "llamacpp", metrics_endpoint=page)])
        watcher = await stack.enter_async_context(watching(citadel, configured(citadel, health=FAST), fleet))
        await watcher.watch(0.5)
        assert (await watcher.board.loads.read())[name].in_flight == 0
        server.behave(properties, path="/props")
        await watcher.watch(1.0)
        server.clear()
        await watcher.watch(1.5)
        asked = {seen.path for seen in server.log(probes=True)}
        assert "/props" in asked
        assert page not in asked
        load = (await watcher.board.loads.read())[name]
        assert (load.models, load.in_flight) == (models, None)


@pytest.mark.parametrize(("page", "tells_queue"), [("/slots", False), ("/metrics", True), ("", None)])
async def test_the_real_llamacpp_tells_how_busy_it_is(citadel: Instance, page: str, tells_queue: bool | None) -> None:
    from apps.orchestration.models import Server as ServerRow

    row = ServerRow.objects.get(server_id__startswith="demo-chat")
    probes = Probes(configured(citadel))
    await probes.start()
    try:
        outcome, load = await probes.probe(Server(row.server_id, row.url, "llamacpp", metrics_endpoint=page))
    finally:
        await probes.stop()
    assert outcome and not outcome.failure
    assert load.has("smollm2:135m")
    assert (load.in_flight is not None, load.queue is not None) == (tells_queue is not None, bool(tells_queue))


async def test_an_address_that_can_not_be_read_is_a_failure_of_its_server(citadel: Instance) -> None:
    """As one may stand in the registry that was kept when such were taken."""
    outcome = await Probes(configured(citadel)).connect(Server("x", "http://[cafe:80]:80", "ollama"))
    assert outcome and outcome.failure == "malformed: ValueError"


async def test_who_comes_together_is_asked_for_models_one_after_the_other(one: tuple[Watcher, Fleet, str]) -> None:
    """As many tasks at once as there are servers would keep all others waiting."""
    watcher, names, learn = one[0], [f"{secrets.token_hex(4)}-{number}" for number in range(60)], 300_000
    _, now, *_ = await watcher.redis.script(TAKE, [1, 30_000, 2_000, 5_000, learn, 60_000, 0, *names])
    turns = [json.loads(turn) for turn in await watcher.redis.call("HMGET", "fleet:probes", *names)]
    await watcher.redis.call("HDEL", "fleet:probes", *names)
    waits = [turn["learn"] - now for turn in turns]
    assert all(0 <= wait <= learn for wait in waits)
    assert max(Counter(wait * 10 // (learn + 1) for wait in waits).values()) < 30, "in each tenth of the time some"
    assert {turn["probe"] - now for turn in turns} == {2_000}, "probes are as soon as ever"


async def test_a_clock_that_is_set_back_holds_up_nothing(one: tuple[Watcher, Fleet, str]) -> None:
    """Times by which a server is due, and leases, may then lie far ahead."""
    watcher, server, name = one
    await watcher.watch(0.3)
    ahead = (await watcher.board.now()) + 600_000
    turn = f'{{"probe":{ahead},"connect":{ahead},"learn":{ahead},"lease":{ahead},"holder":1}}'
    await watcher.redis.call("HSET", "fleet:probes", name, turn)
    server.clear()
    await watcher.watch(0.5)
    assert server.log(probes=True)


@pytest.mark.parametrize(
    ("host", "networks", "status", "reason"),
    [
        ("localhost", ["loopback"], "healthy", ""),
        ("127.0.0.1", ["10.0.0.0/8"], "unhealthy", "address_refused"),
        ("localhost", ["10.0.0.0/8"], "unhealthy", "address_refused"),
        ("nowhere.invalid", ["loopback"], "unhealthy", "no_address"),
    ],
)
async def test_only_what_may_be_called_is_called(
    citadel: Instance, host: str, networks: list[str], status: str, reason: str
) -> None:
    name = f"one-{secrets.token_hex(4)}"
    config = configured(citadel, health=FAST, security={"fleet_networks": networks})
    async with Fleet.start(models=["m"]) as server, AsyncExitStack() as stack:
        row = Server(name, server.url.replace("127.0.0.1", host), "openai")
        watcher = await stack.enter_async_context(watching(citadel, config, snapshot([row])))
        await watcher.watch(2.0)
        record = await watcher.board.look_up(name)
        assert (record.status, record.reason) == (status, reason)
        assert bool(server.connections()) is (status == "healthy")


async def test_probes_that_end_at_the_same_time_all_count(citadel: Instance) -> None:
    """One by the clock and those that people ask for."""
    config = configured(citadel, health={})
    async with watching(citadel, config, snapshot([])) as watcher:
        thresholds = thresholds_of(config)
        good = (conclude(watcher.board, "s", Outcome(response_ms=1), thresholds, 1000.0 + n) for n in range(20))
        await asyncio.gather(*good)
        assert (await watcher.probe_of("s"))["consecutive_successes"] == 20


async def test_a_probe_that_somebody_asks_for_is_one_like_the_others(citadel: Instance) -> None:
    """It sees the same, so the status does not go to and fro; and who comes back by it is asked for its models."""
    name = f"one-{secrets.token_hex(4)}"
    config = configured(citadel, health=FAST)
    async with Fleet.start(models=["m"]) as server, AsyncExitStack() as stack:
        row = Server(name, server.url, "openai")
        watcher = await stack.enter_async_context(watching(citadel, config, snapshot([row])))
        pool = await stack.enter_async_context(make_pool(config))

        async def examine() -> None:
            await examine_now(row, config, watcher.board, pool, lambda: watcher.rounds.fleet)

        await watcher.board.loads.heartbeat(name, Load(cpu=0.97))
        await watcher.until(name, "degraded")
        await examine()
        assert (await watcher.board.look_up(name)).reason == "loaded"
        await watcher.board.loads.heartbeat(name, Load())
        await watcher.until(name, "healthy")
        server.kill()
        await watcher.until(name, "unhealthy")
        server.restart()
        watcher.learned.clear()
        for _ in range(5):
            await examine()
        changes = [data["to"] for kind, _, data in told(citadel, name) if kind == "health_status_changed"]
        assert changes == ["degraded", "healthy", "unhealthy", "healthy"]
        await watcher.watch(0.5)
        assert watcher.learned == [name]
        watcher.rounds.fleet = EMPTY
        before = await watcher.board.look_up(name)
        await examine()
        assert await watcher.board.look_up(name) == before, "who is gone while it is probed has nothing said of it"


async def test_a_moments_trouble_counts_once_however_many_probes_are_asked_for(citadel: Instance) -> None:
    """Each who asks is told of a probe that has begun since."""
    name = f"one-{secrets.token_hex(4)}"
    config = configured(citadel, health={**FAST, "interval": 60.0, "fast_interval": 1.0})
    async with Fleet.start(kind="llamacpp", models=["m"]) as server, AsyncExitStack() as stack:
        row = Server(name, server.url, "llamacpp")
        watcher = await stack.enter_async_context(watching(citadel, config, snapshot([row])))
        pool = await stack.enter_async_context(make_pool(config))

        async def examine() -> dict[str, Any]:
            await examine_now(row, config, watcher.board, pool, lambda: watcher.rounds.fleet)
            return await watcher.probe_of(name)

        server.behave("error 503", path="/health", next=1)
        told_to = await asyncio.gather(*[examine() for _ in range(4)])
        assert {said["consecutive_failures"] for said in told_to} <= {0, 1}
        assert len([seen for seen in server.log(probes=True) if seen.path == "/health"]) <= 2
        assert (await examine())["consecutive_failures"] == 0
        assert (await watcher.board.look_up(name)).status == "healthy"
        turn = await Schedule(watcher.redis, config).take_now(name)
        assert turn is not None, "each has given its lease back"


async def test_probes_that_are_asked_for_and_those_by_the_clock_come_one_at_a_time(citadel: Instance) -> None:
    async with hosts(0, 1) as [host], AsyncExitStack() as stack:
        config = configured(citadel, health={**FAST, "timeout": 0.6})
        watcher = await stack.enter_async_context(watching(citadel, config, snapshot([host.server])))
        pool = await stack.enter_async_context(make_pool(config))

        async def examine(after: float) -> None:
            await asyncio.sleep(after)
            await examine_now(host.server, config, watcher.board, pool, lambda: watcher.rounds.fleet)

        await asyncio.gather(watcher.watch(4.0), *[examine(number * 0.3) for number in range(8)])
        assert host.requests >= 3
        assert host.peak == 1


async def test_what_was_told_of_load_is_not_believed_for_ever(citadel: Instance) -> None:
    """That it was told stays known: by it servers are said to have been seen."""
    async with watching(citadel, configured(citadel, health={}), snapshot([])) as watcher:
        board = Board(watcher.redis, 0.3)
        await board.loads.observe("s", Load(cpu=1.0, queue=7, models=("m",)))
        await board.loads.heartbeat("s", Load(memory=0.9))
        found = (await board.loads.read())["s"]
        assert (found.cpu, found.queue, found.models, found.memory) == (1.0, 7, ("m",), 0.9)
        await asyncio.sleep(0.4)
        assert (await board.loads.read())["s"] == Load(at=found.at)
        await board.loads.heartbeat("s", Load(memory=0.9))
        assert (await board.loads.read())["s"].memory == 0.9
        assert load_lasts(configured(citadel, health={}).health) == 90
