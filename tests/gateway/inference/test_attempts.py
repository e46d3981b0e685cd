"""What a walk through a plan leaves behind where two calls, or many, end in the same turn of the event loop."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock
from unittest.mock import AsyncMock, Mock

import aiohttp
import pytest

from apps.audit.record import Entry as Record
from apps.gateway.inference.calls.asking import INEXACT
from apps.gateway.inference.calls.attempts import Attempts
from apps.gateway.inference.calls.retries import FLOOR, LEAST, MOST
from apps.gateway.inference.doors import CHAT, COMPLETIONS
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import Failure, malformed, map_failure, meaning
from apps.gateway.inference.http.words import PAST_CONTEXT
from apps.gateway.limits.waiting import Estimate, NoPlace, Place, Wanted
from apps.orchestration.fleet import Fleet, Holding, Model, ModelClass, Server
from apps.orchestration.health.board import Board
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.troubles import Troubles
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.plan import Dropped, Needs, Plan
from apps.orchestration.routing.router import Router
from citadel.caller import STRANGER
from citadel.database import Pool
from citadel.errors import BackendFailed, BackendRefused, BackendTimeout, CitadelError, Unavailable
from citadel.sections import RoutingSection

BACKUP_AFTER = 0.01
DEADLINE = 300.0
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": true}'


class Places:
    """A limiter that has a place on the first server that is wanted, and knows which ones are held."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.redis = Mock(script=AsyncMock(return_value=1))  # as many backup requests as anybody wants

    async def find_place(self, wanted: Wanted) -> Place:
        self.held.append(wanted.servers[0][0])
        return Place(wanted.servers[0][0], held=True)

    def leave(self, place: Place) -> None:
        self.held.remove(place.server)


class Opened:
    """The beginning of a stream."""

    def __init__(self, server: Server):
        self.server = server
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Worker:
    """One worker's attempts, without a fleet and without Redis."""

    def __init__(
        self, names: Sequence[str] = ("a", "b"), *, max_concurrent: int = 1, workers: int = 1, attempts: int = 3
    ):
        routing = RoutingSection(attempts=attempts)
        self.servers = tuple(Server(name, f"http://{name}", "openai", max_concurrent=max_concurrent) for name in names)
        self.places = Places()
        self.standings = standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
        board = Mock(spec=Board, troubles=Mock(spec=Troubles))
        board.troubles.count_silence.return_value = board.troubles.count_failure.return_value = 0
        self.watch = Watch(board, standings, Mock(spec=Pool), 30.0)
        self.router = Router(standings, self.watch, routing)
        limiter: Any = self.places
        self.attempts = Attempts(self.router, standings, self.watch, limiter, routing, workers, DEADLINE)
        self.opened: list[Opened] = []
        self.follow({})

    def follow(self, models: dict[str, Model], servers: Sequence[Server] = ()) -> None:
        self.attempts.follow(Fleet(1, models, {}, {server.server_id: server for server in servers or self.servers}))

    def change(self, name: str, **fields: Any) -> None:
        """A snapshot in which a server is another one than in plans from before; without it, where no field is said."""
        now = [replace(server, **fields) if server.server_id == name else server for server in self.servers]
        self.follow({}, now if fields else [server for server in now if server.server_id != name])

    def exchange(self) -> Exchange:
        model_class = ModelClass("c", hedge_ms=int(BACKUP_AFTER * 1000))
        model = Model("m", self.servers, model_class=model_class)
        record = Record("r", time.time(), "t", "k", "chat", "m")
        request = CHAT.read(BODY)
        return Exchange(CHAT, request, BODY, STRANGER, model, record, time.monotonic(), "", streams=True)

    async def run(self, exchange: Exchange, ask: Any) -> Opened:
        opened: Opened = await self.attempts.run(Plan(self.servers), exchange, ask)
        return opened

    def open(self, server: Server) -> Opened:
        self.opened.append(Opened(server))
        return self.opened[-1]

    def is_idle(self) -> bool:
        return not (self.places.held or any(self.router.in_flight.values()))


def outcomes(exchange: Exchange) -> dict[str, Any]:
    return {str(attempt["server"]): attempt["outcome"] for attempt in exchange.record.attempts}


async def settled() -> None:
    """Whoever was cancelled has ended."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("first_to_wake", ["a", "b"])
async def test_of_two_answers_at_once_the_one_that_is_given_is_the_one_that_is_told(first_to_wake: str) -> None:
    worker = Worker()
    exchange = worker.exchange()
    ready = asyncio.Event()
    both: dict[str, asyncio.Future[None]] = {}

    async def ask(server: Server, _: float) -> Opened:
        both[server.server_id] = asyncio.get_running_loop().create_future()
        if len(both) == 2:
            ready.set()
        await both[server.server_id]
        return worker.open(server)

    running = asyncio.create_task(worker.run(exchange, ask))
    await ready.wait()
    for name in sorted(both, key=lambda name: name != first_to_wake):
        both[name].set_result(None)
    given = await running
    await settled()
    server = given.server.server_id
    assert exchange.record.server == server
    assert worker.places.held == [server]
    assert +worker.router.in_flight == {server: 1}
    assert [opened.server.server_id for opened in worker.opened if not opened.is_closed] == [server]
    worker.attempts.ended(exchange)
    worker.attempts.ended(exchange)
    assert worker.is_idle()


async def test_whoever_is_overtaken_is_told_at_once() -> None:
    """The record may be written before its call has ended."""
    worker = Worker()
    exchange = worker.exchange()

    async def ask(server: Server, _: float) -> Opened:
        await asyncio.sleep(10 if server.server_id == "a" else 2 * BACKUP_AFTER)
        return worker.open(server)

    await worker.run(exchange, ask)
    assert outcomes(exchange) == {"a": "cancelled", "b": "ok"}
    assert float(exchange.record.attempts[0]["ms"]) >= 2 * BACKUP_AFTER * 1000
    await settled()
    assert outcomes(exchange) == {"a": "cancelled", "b": "ok"}
    assert worker.places.held == ["b"]


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_backup_requests_are_among_the_attempts_that_there_may_be(attempts: int) -> None:
    worker = Worker("abcd", attempts=attempts)
    exchange = worker.exchange()

    async def ask(_server: Server, _: float) -> Opened:
        await asyncio.sleep(3 * BACKUP_AFTER)
        raise Failure("status_503", BackendFailed("The server is going down."))

    with pytest.raises(Failure):
        await worker.run(exchange, ask)
    assert outcomes(exchange) == dict.fromkeys("abcd"[:attempts], "status_503")


async def test_an_answer_that_has_begun_gets_no_backup_request_however_long_it_takes() -> None:
    worker = Worker()
    exchange = worker.exchange()

    async def ask(server: Server, _: float) -> Opened:
        exchange.answer_comes()
        await asyncio.sleep(5 * BACKUP_AFTER)
        return worker.open(server)

    await worker.run(exchange, ask)
    assert outcomes(exchange) == {"a": "ok"}


async def test_a_refusal_is_told_of_the_server_that_refused() -> None:
    worker = Worker()
    exchange = worker.exchange()

    async def ask(server: Server, _: float) -> Opened:
        await asyncio.sleep(3 * BACKUP_AFTER if server.server_id == "a" else 10)
        raise BackendRefused("No.", status=400)

    with pytest.raises(BackendRefused):
        await worker.run(exchange, ask)
    await settled()
    assert exchange.record.server == "a"
    assert outcomes(exchange) == {"a": "refused_request", "b": "cancelled"}
    assert worker.is_idle()


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind(begun: bool, turns: int) -> None:
    """Before the first call, in a race, and in the turns in which both answer."""
    worker = Worker()
    exchange = worker.exchange()
    both = asyncio.get_running_loop().create_future()

    async def ask(server: Server, _: float) -> Opened:
        await asyncio.shield(both)
        return worker.open(server)

    running = asyncio.create_task(worker.run(exchange, ask))
    if begun:
        await asyncio.sleep(2 * BACKUP_AFTER)
        both.set_result(None)
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    await settled()
    if running.cancelled():
        assert all(opened.is_closed for opened in worker.opened)
    worker.attempts.ended(exchange)
    assert worker.is_idle()


async def test_a_suspected_request_says_nothing_of_the_server_that_it_tries() -> None:
    worker = Worker()
    exchange, now = worker.exchange(), time.monotonic()
    worker.attempts._suspects.accuse(BODY, now - 1)
    worker.standings.failed("a", now - 10, "refused")
    take_trial = AsyncMock(return_value=True)

    async def ask(_: Server, __: float) -> Opened:
        raise malformed("as with any server")

    with mock.patch.object(worker.watch, "take_trial", take_trial), pytest.raises(Failure):
        await worker.attempts.run(Plan((worker.servers[1],), trial=worker.servers[0]), exchange, ask)
    assert outcomes(exchange) == {"a": "malformed: as with any server"}
    assert worker.standings.trial_due("a", time.monotonic()), "by the next request"


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (aiohttp.ConnectionTimeoutError(), "ab"),
        (aiohttp.ClientConnectorDNSError(Mock(), OSError()), "ab"),
        (aiohttp.ClientConnectorCertificateError(Mock(), Exception()), "ab"),
        (aiohttp.ClientConnectorError(Mock(), OSError()), "abc"),
    ],
)
async def test_connections_that_are_not_made_in_time_put_out_no_more_than_half_of_a_models_servers(
    error: Exception, out: str
) -> None:
    """They may be our own doing, or the network's; a refusal is the server's own word."""
    worker = Worker("abcd", max_concurrent=0)
    worker.watch.server_out = Mock()  # type: ignore[method-assign]  # there is no board
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)  # without backups
    worker.follow({"m": exchange.model})

    async def ask(_server: Server, _: float) -> Opened:
        raise map_failure(error)

    with pytest.raises(Unavailable):
        await worker.attempts.run(Plan(worker.servers), exchange, ask)
    assert set(outcomes(exchange)) == set("abc")
    assert {name for name in "abcd" if not worker.standings.in_rotation(name)} == set(out)


@pytest.mark.parametrize("workers", [1, 4, 8])
async def test_workers_share_what_retries_may_cost(workers: int) -> None:
    """A hundred saved up, ten a second and a tenth of the requests: over all of them, but each has twenty."""
    asked = 0

    async def ask(_server: Server, _: float) -> Opened:
        nonlocal asked
        asked += 1
        raise Failure("status_503", Unavailable("Not ready.", retry_after=1), blamed=False)

    async def fail(worker: Worker) -> None:
        exchange = worker.exchange()
        exchange.model = Model("m", worker.servers)  # without backups
        with pytest.raises(Failure):
            await worker.attempts.run(Plan(worker.servers), exchange, ask)

    begun, each = time.monotonic(), 640 // workers
    every = [Worker(max_concurrent=0, workers=workers) for _ in range(workers)]
    await asyncio.gather(*(fail(worker) for worker in every for _ in range(each)))
    retries = asked - each * workers
    saved = max(MOST, LEAST * workers)
    assert saved - workers <= retries <= saved + 0.1 * each * workers + FLOOR * (time.monotonic() - begun)


async def test_requests_that_are_called_back_need_no_budget() -> None:
    """However many wait at a server that goes out: those in the rotation get each of them once."""
    worker = Worker(max_concurrent=0)
    count = int(2 * MOST)

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "a":
            await asyncio.sleep(10)
        return worker.open(server)

    exchanges = [worker.exchange() for _ in range(count)]
    for exchange in exchanges:
        exchange.model = Model("m", worker.servers)  # without backups
    running = [asyncio.create_task(worker.run(exchange, ask)) for exchange in exchanges]
    await settled()
    worker.watch.on_silence("a")
    assert {opened.server.server_id for opened in await asyncio.gather(*running)} == {"b"}
    assert {tuple(outcomes(exchange).items()) for exchange in exchanges} == {(("a", "moved"), ("b", "ok"))}


CALLED_BACK = ["another", "another, after one that broke off"]
STAYS = ["no other", "another that is out", "another that is drained", "no attempt left", "its answer has begun"]


@pytest.mark.parametrize("case", [*CALLED_BACK, *STAYS])
async def test_of_a_server_that_is_given_up_only_those_are_called_back_who_have_another(case: str) -> None:
    """It may answer all the same: an operator gives up one that works."""
    worker = Worker({"no other": "a", CALLED_BACK[1]: "cab"}.get(case, "ab"), max_concurrent=0)
    if case == "another that is out":
        worker.standings.put_out("b", time.monotonic())
    if case == "another that is drained":
        worker.change("b", state="draining")
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)  # without backups
    if case == "no attempt left":
        exchange.record.attempts += [{"server": "c", "outcome": "status_500", "ms": 1.0}] * 2

    at_a = asyncio.Event()

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "c" or case == "its answer has begun":
            exchange.answer_comes()
        if server.server_id == "c":
            raise Failure("disconnected", Unavailable("It broke off."), blamed=False)
        if server.server_id == "a":
            at_a.set()
            await asyncio.sleep(0.05)
        return worker.open(server)

    running = asyncio.create_task(worker.run(exchange, ask))
    await at_a.wait()
    worker.watch.on_given_up("a")
    assert (await running).server.server_id == ("b" if case in CALLED_BACK else "a")
    assert outcomes(exchange)["a"] == ("moved" if case in CALLED_BACK else "ok")


GONE = {
    "drained": lambda worker: worker.change("b", state="draining"),
    "disabled": lambda worker: worker.change("b", state="disabled"),
    "elsewhere": lambda worker: worker.change("b", url="http://elsewhere"),
    "taken out": lambda worker: worker.change("b"),
    "out": lambda worker: worker.standings.put_out("b", time.monotonic()),
}


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("is_backup", [False, True])
@pytest.mark.parametrize("gone", GONE)
async def test_who_has_gone_since_the_plan_was_made_is_not_tried(gone: str, is_backup: bool, limit: int) -> None:
    worker = Worker("abc", max_concurrent=limit)
    exchange, asked = worker.exchange(), []
    if not is_backup:
        exchange.model = Model("m", worker.servers)

    async def ask(server: Server, _: float) -> Opened:
        asked.append(server.server_id)
        if server.server_id == "a":
            GONE[gone](worker)
            await asyncio.sleep(10 * BACKUP_AFTER if is_backup else 0)
            raise Failure("status_500", BackendFailed("It failed."))
        return worker.open(server)

    assert (await worker.run(exchange, ask)).server.server_id == "c"
    assert asked == ["a", "c"]


async def test_where_all_others_have_gone_the_failure_is_told() -> None:
    worker = Worker("ab", max_concurrent=0)
    exchange = worker.exchange()

    async def ask(server: Server, _: float) -> Opened:
        assert server.server_id == "a"
        worker.change("b", state="draining")
        await asyncio.sleep(3 * BACKUP_AFTER)
        raise Failure("status_500", BackendFailed("It failed."))

    with pytest.raises(Failure) as raised:
        await worker.run(exchange, ask)
    assert raised.value.reason == "status_500"


async def test_whoever_is_tried_next_is_as_it_is_now() -> None:
    """A key of a server that has been changed meanwhile, for one."""
    worker = Worker("ab", max_concurrent=0)
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "a":
            worker.change("b", api_key="new")
            raise Failure("status_500", BackendFailed("It failed."))
        return worker.open(server)

    assert (await worker.run(exchange, ask)).server.api_key == "new"


async def test_a_backup_that_broke_off_leaves_the_first_free_to_be_called_back() -> None:
    worker = Worker("abc", max_concurrent=0)
    exchange, broken = worker.exchange(), asyncio.Event()

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "a":
            await asyncio.sleep(10)
        if server.server_id == "b":
            exchange.answer_comes()
            broken.set()
            raise Failure("disconnected", Unavailable("It broke off."), blamed=False)
        return worker.open(server)

    running = asyncio.create_task(worker.run(exchange, ask))
    await broken.wait()
    await settled()
    worker.watch.on_given_up("a")
    assert (await running).server.server_id == "c"


async def test_moved_and_then_refused_is_a_matter_of_waiting() -> None:
    """Two servers that go one after the other: the client is told when to come back."""
    worker = Worker(max_concurrent=0)
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)
    failures = {
        "a": Failure("moved", Unavailable("The server is going out."), blamed=False),
        "b": Failure("refused", BackendFailed("The server can't be reached."), refused=True),
    }

    async def ask(server: Server, _: float) -> Opened:
        raise failures[server.server_id]

    with pytest.raises(Unavailable) as told:
        await worker.run(exchange, ask)
    assert (told.value.code, told.value.retry_after is not None) == ("no_server_available", True)
    assert worker.is_idle()


@pytest.mark.parametrize("others", ["b", "bc"])
async def test_a_request_that_fails_on_both_servers_of_a_race_is_suspected(others: str) -> None:
    """As one that fails on one after the other: no third server is asked, and neither is blamed."""
    worker = Worker(("a", *others), max_concurrent=0)
    exchange = worker.exchange()
    both = asyncio.Event()

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "b":
            both.set()
        await both.wait()
        raise Failure("disconnected", BackendFailed("The server broke the connection off."))

    with pytest.raises(Failure) as told:
        await worker.run(exchange, ask)
    assert outcomes(exchange) == {"a": "disconnected", "b": "disconnected"}
    assert str(told.value.error) == "The servers that were tried failed on this request."
    assert exchange.suspected
    assert [standing.failures for name in "ab" if (standing := worker.standings[name])] == [0, 0]
    again = worker.exchange()
    with pytest.raises(Failure):
        await worker.run(again, ask)
    await asyncio.sleep(2 * BACKUP_AFTER)
    assert outcomes(again) == {"a": "disconnected"}, "for a minute it gets one attempt"
    assert worker.is_idle()


async def test_equal_requests_under_way_are_suspected_with_the_first() -> None:
    """Of several that are sent at the same time none goes to a third server, and none leaves a mark on any."""
    worker = Worker("abc", max_concurrent=0)
    exchanges = [worker.exchange() for _ in range(4)]
    for exchange in exchanges:
        exchange.model = Model("m", worker.servers)  # without backups

    async def ask(server: Server, _: float) -> Opened:
        await asyncio.sleep(BACKUP_AFTER)
        raise Failure("disconnected", BackendFailed("The server broke the connection off."))

    await asyncio.gather(*(worker.run(exchange, ask) for exchange in exchanges), return_exceptions=True)
    assert {tuple(outcomes(exchange)) for exchange in exchanges} == {("a", "b")}
    assert [standing.failures for name in "ab" if (standing := worker.standings[name])] == [0, 0]


@pytest.mark.parametrize("reason", ["timeout", "status_504"])
async def test_after_two_servers_that_answer_nothing_in_time_others_are_asked(reason: str) -> None:
    """By the next requests: these servers hang, whatever they are asked, though they may be too many to be put out."""
    worker = Worker("abcde", max_concurrent=0)
    for name in "ab":
        worker.standings.failed(name, time.monotonic(), "refused")
    model = Model("m", worker.servers)
    worker.follow({"m": model})
    told = []
    for number in range(2):
        exchange = worker.exchange()
        exchange.model, exchange.body = model, b"%d" % number

        async def ask(server: Server, _: float) -> Opened:
            if server.server_id == "e":
                return worker.open(server)
            raise Failure(reason, BackendTimeout("The server took too long to answer."))

        [answer] = await asyncio.gather(
            worker.attempts.run(Plan(worker.servers[2:]), exchange, ask), return_exceptions=True
        )
        told.append((type(answer), list(outcomes(exchange))))
        worker.attempts.ended(exchange)
    assert told == [(Failure, ["c", "d"]), (Opened, ["c", "d", "e"])]


async def test_a_request_that_was_given_up_says_nothing_more_of_servers_when_it_is_sent_again() -> None:
    """But those do that are under way at the same time, be they all the same: so it is found who hangs."""
    worker = Worker("abc", max_concurrent=0)
    counted = worker.watch.server_silent = Mock()  # type: ignore[method-assign]
    worker.standings.fell_silent = Mock()  # type: ignore[method-assign]  # else each would find the next one's server silent
    model = Model("m", worker.servers)
    exchanges = [worker.exchange() for _ in range(5)]
    for exchange in exchanges:
        exchange.model = model

    async def ask(_server: Server, _: float) -> Opened:
        await asyncio.sleep(INEXACT)
        raise Failure("timeout", BackendTimeout("The server took too long to answer."))

    async def run(exchange: Exchange) -> object:
        return await asyncio.gather(worker.attempts.run(Plan(worker.servers), exchange, ask), return_exceptions=True)

    *together, later = exchanges
    await asyncio.gather(*map(run, together))
    assert {tuple(outcomes(exchange)) for exchange in together} == {("a", "b")}
    assert counted.call_count == 8
    later.started = time.monotonic()
    await run(later)
    assert list(outcomes(later)) == ["a"], "one server more"
    assert counted.call_count == 8


async def test_calls_from_before_say_nothing_of_who_has_the_name_now() -> None:
    """A server was removed, another moved, while requests ran there."""
    worker = Worker("abc", max_concurrent=0)
    counted = worker.watch.server_failed = Mock()  # type: ignore[method-assign]
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)  # without backups

    async def ask(server: Server, _: float) -> Opened:
        _, b, c = worker.servers
        if server is c:
            return worker.open(server)
        worker.follow({}, [b, c] if server is not b else [replace(b, url="http://elsewhere"), c])
        raise Failure("status_503", BackendFailed("The server is going down."))

    await worker.run(exchange, ask)
    assert outcomes(exchange) == {"a": "status_503", "b": "status_503", "c": "ok"}
    assert [worker.standings[name] for name in "abc"] == [None] * 3
    assert {key.server for key, _ in worker.router.paces.items()} == {"c"}
    verdicts, gone = worker.attempts.verdicts, Failure("status_429", BackendFailed("Later."), pause=30.0)
    verdicts.pause(worker.servers[1], exchange, gone)
    assert not worker.standings.pauses
    assert counted.call_count == 0


async def test_requests_that_end_at_their_time_limits_together_are_no_failures_in_a_row_of_all_workers() -> None:
    worker = Worker("ab", max_concurrent=0)
    failed, silent = worker.watch.server_failed, worker.watch.server_silent = Mock(), Mock()  # type: ignore[method-assign]
    for reason, failures, silences in (("timeout", 0, 1), ("status_504", 1, 2), ("status_500", 2, 2)):
        counted = worker.attempts.verdicts.failed(worker.servers[0], reason)
        assert (failed.call_count, silent.call_count) == (failures, silences)
        assert counted is bool(failures)


async def test_who_waited_in_vain_did_so_since_the_last_good_answer_at_most() -> None:
    """Be it to another model, or to a stream: it is by this that a server is given up at once."""
    worker = Worker("a", max_concurrent=0)
    [server] = worker.servers
    verdicts, begun = worker.attempts.verdicts, time.monotonic() - 60
    worker.watch.server_silent = Mock()  # type: ignore[method-assign]
    verdicts.failed(server, "timeout", since=begun)
    standing = worker.standings["a"]
    assert standing and standing.silent_since == begun
    before = time.monotonic()
    verdicts.succeeded(server, whole=False)
    verdicts.failed(server, "timeout", since=begun)
    assert standing.silent_since >= before
    silent_since = standing.silent_since
    verdicts.failed(server, "timeout")
    assert standing.silent_since == silent_since, "nothing earlier is known"


async def test_who_has_not_an_endpoint_is_asked_last_for_it_alone() -> None:
    """What a client asks for that no server has takes nobody's traffic away."""
    worker = Worker("ab", max_concurrent=0)
    model = Model("m", worker.servers)
    worker.follow({"m": model})
    exchange = worker.exchange()
    exchange.model, exchange.door = model, COMPLETIONS

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "a":
            raise meaning(404, b"404 page not found", server)
        return worker.open(server)

    await worker.run(exchange, ask)
    assert outcomes(exchange) == {"a": "not_found", "b": "ok"}

    def firsts(needs: Needs) -> set[str]:
        return {worker.router.plan(model, needs).order[0].server_id for _ in range(4)}

    assert firsts(Needs(endpoint="completions")) == {"b"}
    assert firsts(Needs(endpoint="chat")) == firsts(Needs()) == {"a", "b"}


@pytest.mark.parametrize("lacks", [b"404 page not found", b"no such model"])
@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_what_one_has_not_got_is_told_only_where_nothing_else_went_wrong(order: str, lacks: bytes) -> None:
    """Else another has it, and fails."""
    for failure, told in (
        (Failure("status_500", BackendFailed("It fails.")), "upstream_failed"),
        (Failure("refused", BackendFailed("It can't be reached."), refused=True), "no_server_available"),
    ):
        worker = Worker(order, max_concurrent=0)
        exchange = worker.exchange()
        exchange.model = Model("m", worker.servers)  # without backups

        async def ask(server: Server, _: float, failure: Failure = failure) -> Opened:
            raise meaning(404, lacks, server) if server.server_id == "a" else failure

        with pytest.raises((Failure, Unavailable)) as raised:
            await worker.run(exchange, ask)
        error = raised.value.error if isinstance(raised.value, Failure) else raised.value
        assert error.code == told


async def test_who_falls_silent_is_asked_last_where_it_may_not_be_out() -> None:
    for well_again in (False, True):
        worker = Worker("ab", max_concurrent=0)
        board: Any = worker.watch._board
        board.troubles.count_silence.return_value = 2
        worker.follow({"m": Model("m", worker.servers)})
        worker.standings.failed("b", time.monotonic(), "refused")  # the one that may
        worker.attempts.verdicts.failed(worker.servers[0], "timeout", since=time.monotonic())
        if well_again:
            worker.attempts.verdicts.succeeded(worker.servers[0])
        await settled()
        assert worker.standings.in_rotation("a")
        assert worker.standings.pauses.is_paused("a", "m", time.monotonic()) is not well_again


async def test_what_was_not_counted_is_not_forgiven() -> None:
    """Another request's failure would be taken back."""
    worker = Worker("ab", max_concurrent=0)
    failed, forgiven = worker.watch.server_failed, worker.watch.failure_forgiven = Mock(), Mock()  # type: ignore[method-assign]
    worker.standings.failed("a", time.monotonic(), "refused")
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)  # without backups

    async def ask(_server: Server, _: float) -> Opened:
        raise Failure("disconnected", BackendFailed("The server broke the connection off."))

    await asyncio.gather(worker.run(exchange, ask), return_exceptions=True)
    assert exchange.suspected
    assert [call.args[0] for call in failed.call_args_list] == ["b"], "the other is out"
    assert [call.args[0] for call in forgiven.call_args_list] == ["b"]


@pytest.mark.parametrize("silent", ["", "a", "ab"])
async def test_a_request_that_takes_two_servers_too_long_is_given_up(silent: str) -> None:
    """Unless one of them had kept somebody waiting before: then that one hangs, whatever it is asked."""
    worker = Worker("abc", max_concurrent=0)
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)  # without backups
    worker.standings.follow_troubled(set(silent), set(), time.monotonic())

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "c":
            return worker.open(server)
        raise Failure("timeout", BackendTimeout("The server took too long to answer."))

    [told] = await asyncio.gather(worker.run(exchange, ask), return_exceptions=True)
    assert isinstance(told, Opened if silent else Failure)
    assert outcomes(exchange) == {"a": "timeout", "b": "timeout"} | ({"c": "ok"} if silent else {})
    assert exchange.suspected is not bool(silent)
    assert [standing.failures for name in "ab" if (standing := worker.standings[name])] == [1, 1], "they are blamed"
    worker.attempts.ended(exchange)
    assert worker.is_idle()


async def test_a_backup_without_a_place_is_given_back_to_the_class_that_paid() -> None:
    worker = Worker()
    exchange = worker.exchange()
    find_place = worker.places.find_place

    async def find_none(wanted: Wanted) -> Place:
        if wanted.servers[0][0] == "a":
            return await find_place(wanted)
        exchange.model = replace(exchange.model, model_class=ModelClass("d", hedge_ms=10))  # as a new plan does it
        raise NoPlace(".", Estimate(1, 0.0))

    async def ask(server: Server, _: float) -> Opened:
        await asyncio.sleep(3 * BACKUP_AFTER)
        return worker.open(server)

    with mock.patch.object(worker.places, "find_place", find_none):
        await worker.run(exchange, ask)
    await settled()
    assert [told.args[2] for told in worker.places.redis.tell.mock_calls] == ["backups c"]


async def test_both_failures_of_a_race_count_for_what_the_client_is_told() -> None:
    worker = Worker(max_concurrent=0)
    exchange = worker.exchange()

    async def ask(server: Server, _: float) -> Opened:
        await asyncio.sleep(3 * BACKUP_AFTER)
        if server.server_id == "a":
            raise Failure("refused", BackendFailed("The server can't be reached."), refused=True)
        raise malformed("an answer")

    with pytest.raises(Failure):  # and not that there is no server: one was reached, and failed
        await worker.run(exchange, ask)
    assert outcomes(exchange) == {"a": "refused", "b": "malformed: an answer"}
    assert worker.is_idle()


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_the_client_is_told_when_to_come_back_if_any_server_says_so(order: str) -> None:
    worker = Worker(order, max_concurrent=0)
    exchange = worker.exchange()
    exchange.model = Model("m", worker.servers)  # without backups

    async def ask(server: Server, _: float) -> Opened:
        if server.server_id == "a":
            raise meaning(429, b"", server, "7")
        raise map_failure(aiohttp.ClientConnectorError(Mock(), OSError()))

    with pytest.raises(Failure) as told:
        await worker.attempts.run(Plan(worker.servers), exchange, ask)
    assert (told.value.error.code, told.value.error.retry_after) == ("server_busy", 7.0)


async def test_with_a_backup_request_no_more_servers_are_tried_than_without() -> None:
    worker = Worker(names="abcde")
    exchange = worker.exchange()

    async def ask(_server: Server, _: float) -> Opened:
        await asyncio.sleep(5 * BACKUP_AFTER)
        raise Failure("status_503", Unavailable("The server is not ready."), blamed=False)

    with pytest.raises(Failure):
        await worker.run(exchange, ask)
    assert len(exchange.record.attempts) == RoutingSection().attempts
    assert worker.is_idle()


@pytest.mark.parametrize(("longest", "answers"), [(("a", "b", "c"), {"c"}), (("b", "a", "c"), {"c"}), (("c",), set())])
async def test_what_is_too_long_for_one_goes_to_those_with_a_longer_context(
    longest: Sequence[str], answers: set[str]
) -> None:
    worker = Worker(names=longest, max_concurrent=0)
    lengths = {"a": 4096, "b": 4096, "c": 32768}
    exchange = worker.exchange()
    exchange.model = replace(
        exchange.model,
        model_class=None,
        holdings={name: Holding(context_length=lengths[name], capabilities=None) for name in longest},
    )
    asked = []

    async def ask(server: Server, _: float) -> Opened:
        asked.append(server.server_id)
        if server.server_id in answers:
            return worker.open(server)
        raise BackendRefused("It is too long.", status=400, code=PAST_CONTEXT)

    if answers:
        assert (await worker.run(exchange, ask)).server.server_id == "c"
        assert asked == [longest[0], "c"], "not to one whose context is as short"
    else:
        with pytest.raises(BackendRefused):
            await worker.run(exchange, ask)
        assert asked == ["c"]


@pytest.mark.parametrize(
    ("dropped", "is_outage"),
    [
        ((), False),
        ((Dropped("c", "lacks tools"), Dropped("d", "disabled")), False),
        ((Dropped("c", "lacks tools"), Dropped("d", "ejected", is_away=True)), True),
        ((Dropped("c", "draining", is_away=True),), True),
    ],
)
async def test_who_leads_back_here_hides_no_outage(dropped: tuple[Dropped, ...], is_outage: bool) -> None:
    worker = Worker()
    answer = b'{"error": {"message": "back", "code": "loop_detected"}}'

    async def ask(server: Server, _: float) -> Opened:
        raise meaning(508, answer, server)

    with pytest.raises(Unavailable if is_outage else Failure) as raised:
        await worker.attempts.run(Plan(worker.servers, dropped), worker.exchange(), ask)
    told = raised.value.error if isinstance(raised.value, Failure) else raised.value
    assert isinstance(told, CitadelError)
    assert (told.status_code, bool(told.retry_after)) == ((503, True) if is_outage else (508, False))
