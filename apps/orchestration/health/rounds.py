"""What a tick of the fleet's clock does: it takes the servers whose turn it is and probes them all at once."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from apps.orchestration import fleet
from apps.orchestration.health.board import Board, Change
from apps.orchestration.health.changes import tell_change
from apps.orchestration.health.conclusion import conclude, thresholds_of
from apps.orchestration.health.conditions import UNKNOWN, Loads, Record, Records
from apps.orchestration.health.loads import load_lasts
from apps.orchestration.health.probes import Probes
from apps.orchestration.health.schedule import Schedule, Turn
from apps.orchestration.health.states import Memory, Outcome, in_doubt
from apps.orchestration.health.vigil import Vigil
from citadel.background import Background
from citadel.database import Pool
from citadel.redis import Redis, RedisError
from citadel.sections import Config

log = structlog.get_logger("citadel.rounds")

LOADED = "loaded"
ASK_AGAIN_MS, ASK_AGAIN_AT_MOST_MS = 10_000, 300_000
"""Between the first two questions of what a server is that answers, while nobody knows; each time twice as long."""


class Rounds:
    """The probes of one process. `learn` has a server asked for its models, elsewhere."""

    def __init__(self, config: Config, redis: Redis, pool: Pool, learn: Callable[[str], None]):
        self._config = config
        self._thresholds = thresholds_of(config)
        self._board = Board(redis, load_lasts(config.health))
        self._schedule = Schedule(redis, config)
        self._pool = pool
        self._learn = learn
        self._probes = Probes(config)
        self._vigil = Vigil(config, redis, self._board, pool)
        self.fleet = fleet.EMPTY
        """The snapshot in force, replaced by whoever follows the configuration."""
        self._records: Records = {}
        self._loads: Loads = {}
        self._number = -1
        self._clock = 0.0
        """What is added to monotonic milliseconds to get Redis's."""
        self._suspected: dict[str, int] = {}
        """When the traffic put out those whom that has had probed."""
        self._background = Background("probe rounds")
        self._on_vigil: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Makes ready to probe."""
        await self._probes.start()

    async def stop(self) -> None:
        """Leaves what is under way: its leases run out."""
        await self._background.stop()
        await self._probes.stop()

    async def tick(self, every: float) -> int | None:
        """Takes the tick of this moment and begins what it has to do; gives its number, None when it was taken.

        Raises RedisError.
        """
        await self._look()
        servers = self.fleet.servers  # of this moment: there may be others while the turn is taken
        watched = [server.server_id for server in servers.values() if server.state in fleet.CALLED]
        suspects = [server_id for server_id in watched if self._is_suspect(server_id)]
        turn = await self._schedule.take(every, watched, suspects)
        if turn is None:
            return None
        self._clock = turn.now - time.monotonic() * 1000
        for server_id in turn.probes:
            self._suspected[server_id] = self._put_out_at(server_id)
            self._background.begin(self._probe(servers[server_id], turn))
        for server_id in turn.connections:
            self._background.begin(self._connect(servers[server_id], turn))
        for server_id in turn.discoveries:
            self._background.begin(self._discover(server_id))
        if self._on_vigil is None or self._on_vigil.done():  # one that waits for the database is not doubled
            self._on_vigil = self._background.begin(self._vigil.keep(self.fleet, self._records, self._loads, turn.now))
        log.debug("tick", number=turn.number, probes=len(turn.probes), connections=len(turn.connections))
        return turn.number

    async def _look(self) -> None:
        """Takes a new copy of the board where it has moved."""
        number = await self._board.number()
        if number != self._number:
            self._records, self._number = await self._board.read(), number
        self._loads = await self._board.loads.read()

    def _is_suspect(self, server_id: str) -> bool:
        """Whether the traffic has put a server out and no probe has looked at it since."""
        at = self._put_out_at(server_id)
        return at > 0 and self._suspected.get(server_id) != at

    def _put_out_at(self, server_id: str) -> int:
        record = self._records.get(server_id)
        said = record.memory("traffic") if record else {}
        return int(said["at"]) if said.get("status") == "unhealthy" else 0

    async def _connect(self, server: fleet.Server, turn: Turn) -> None:
        """A bare connection. One that fails is a failure, and a probe follows it at once, as it does when a server that
        is out takes connections again.
        """
        begun = time.monotonic()
        outcome = await self._probes.connect(server)
        if self._is_gone(server):
            outcome = None
        record = self._records.get(server.server_id, Record())
        is_out = record.memory("probe").get("status") == "unhealthy"
        failed = outcome is not None and bool(outcome.failure)
        if outcome and failed and not is_out:
            await self._conclude(server.server_id, outcome, begun)
        if outcome and not failed:
            await self._ask_what_it_is(server.server_id)
        if failed != is_out and outcome is not None:
            await self._probe(server, turn)
        else:
            await self._release(server.server_id, turn, None)

    async def _probe(self, server: fleet.Server, turn: Turn) -> None:
        begun = time.monotonic()
        outcome, load = await self._probes.probe(server)
        if self._is_gone(server):
            outcome, load = None, UNKNOWN
        pace = self._config.health.interval
        if load is not UNKNOWN:
            await self._quietly(self._board.loads.observe(server.server_id, load))
        if outcome is not None:
            if self._is_loaded(server.server_id) and not outcome.strain:
                outcome = msgspec.structs.replace(outcome, strain=LOADED)
            after = await self._conclude(server.server_id, outcome, begun)
            if not outcome.failure:
                await self._ask_what_it_is(server.server_id)
            if after is None or in_doubt(after, self._thresholds):
                pace = self._config.health.fast_interval
        await self._release(server.server_id, turn, max(0.0, begun + pace - time.monotonic()))

    def _is_gone(self, server: fleet.Server) -> bool:
        """Whether a server has another address by now, or none: what was found at the one it had says nothing of it."""
        now = self.fleet.servers.get(server.server_id)
        return now is None or now.url != server.url

    async def _conclude(self, server_id: str, outcome: Outcome, begun: float) -> Memory | None:
        """Says on the board what follows from an outcome; gives that, None where Redis is away."""
        try:
            concluded = await conclude(self._board, server_id, outcome, self._thresholds, begun * 1000 + self._clock)
        except RedisError as error:
            log.warning("probe_not_kept", server=server_id, reason=str(error) or type(error).__name__)
            return None
        for change in concluded.changes:
            self._tell(server_id, change)
        return concluded.memory

    def _tell(self, server_id: str, change: Change) -> None:
        """Lets all know of a change; the probe does not wait for that."""
        self._background.begin(tell_change(self._board, self._pool, change))
        if change.before == "unhealthy" and change.record.status != "unhealthy":
            self._background.begin(self._discover(server_id))

    async def _ask_what_it_is(self, server_id: str) -> None:
        """Has a server that answers asked for its kind and models where nobody could find its kind out yet: it may have
        registered before it listened, and is never unhealthy then. Of all probers one does that, less and less often.
        """
        now = self.fleet.servers.get(server_id)
        if now is None or now.known:
            return
        with contextlib.suppress(RedisError):
            if await self._take_question(now):
                self._background.begin(self._discover(server_id))

    async def _take_question(self, server: fleet.Server) -> bool:
        """Whether to ask a server now; at another address it is another."""
        call, place = self._board.redis.call, f"{server.server_id} {server.url}"
        turn, asked = f"fleet:turn:kind:{place}", f"fleet:asked:kind:{place}"
        if not await call("SET", turn, 1, "NX", "PX", ASK_AGAIN_MS):
            return False
        await call("SET", asked, 0, "NX", "PX", 2 * ASK_AGAIN_AT_MOST_MS)  # what INCR makes would stay if we die then
        times = await call("INCR", asked)
        pause = min(ASK_AGAIN_AT_MOST_MS, ASK_AGAIN_MS * 2 ** min(times - 1, 10))
        await call("PEXPIRE", turn, pause)
        await call("PEXPIRE", asked, 2 * ASK_AGAIN_AT_MOST_MS)
        return True

    async def _discover(self, server_id: str) -> None:
        await asyncio.to_thread(self._learn, server_id)

    def _is_loaded(self, server_id: str) -> bool:
        """Whether processors or queue are over their bounds; that memory is taken is what it is there for."""
        load, bounds = self._loads.get(server_id, UNKNOWN), self._config.scaling
        return (load.cpu or 0.0) > bounds.cpu or (load.queue or 0) > bounds.queue

    async def _release(self, server_id: str, turn: Turn, probe_in: float | None) -> None:
        await self._quietly(self._schedule.release(server_id, turn, probe_in=probe_in))

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        """Does what whoever probes next does again where Redis is away."""
        with contextlib.suppress(RedisError):
            await work
