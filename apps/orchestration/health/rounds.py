"""What a tick of the fleet's clock does: it takes the servers whose turn it is and probes them all at once."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import structlog

from apps.orchestration import fleet
from apps.orchestration.health.board import Board
from apps.orchestration.health.conditions import UNKNOWN, Loads, Record, Records
from apps.orchestration.health.examiner import Examiner
from apps.orchestration.health.loads import load_lasts
from apps.orchestration.health.schedule import Schedule, Turn
from apps.orchestration.health.vigil import Vigil
from citadel.background import Background
from citadel.database import Pool
from citadel.redis import Redis, RedisError
from citadel.sections import Config

log = structlog.get_logger("citadel.rounds")


class Rounds:
    """The probes of one process. `learn` has a server asked for its models, elsewhere, and its kind settled or not,
    where fewer than so many questions wait.
    """

    def __init__(self, config: Config, redis: Redis, pool: Pool, learn: Callable[[str, bool, int], None]):
        self._config = config
        self._board = Board(redis, load_lasts(config.health))
        self._schedule = Schedule(redis, config)
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
        self._learn = learn
        self._examiner = Examiner(
            config, self._board, pool, self._background, fleet=lambda: self.fleet, learn=self._ask
        )
        self._on_vigil: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Makes ready to probe."""
        await self._examiner.start()

    async def stop(self) -> None:
        """Leaves what is under way: its leases run out."""
        await self._background.stop()
        await self._examiner.stop()

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
            self._background.begin(self._ask_in_turn(server_id))
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
        outcome = await self._examiner.probes.connect(server)
        if self._examiner.is_gone(server):
            outcome = None
        record = self._records.get(server.server_id, Record())
        is_out = record.memory("probe").get("status") == "unhealthy"
        failed = outcome is not None and bool(outcome.failure)
        if outcome and failed and not is_out:
            with _told(server.server_id):
                await self._examiner.conclude(server.server_id, outcome, begun * 1000 + self._clock)
        if outcome and not failed:
            await self._examiner.ask_what_it_is(server.server_id)
        if failed != is_out and outcome is not None:
            await self._probe(server, turn)
        else:
            await self._release(server.server_id, turn, None)

    async def _probe(self, server: fleet.Server, turn: Turn) -> None:
        begun = time.monotonic()
        pace = self._config.health.fast_interval
        with _told(server.server_id):
            load = self._loads.get(server.server_id, UNKNOWN)
            pace = self._examiner.pace(await self._examiner.examine(server, load, begun * 1000 + self._clock))
        await self._release(server.server_id, turn, max(0.0, begun + pace - time.monotonic()))

    async def _ask_in_turn(self, server_id: str) -> None:
        """But not who is out by its probes: it would not answer, and is asked when it comes back."""
        with contextlib.suppress(RedisError):
            record = await self._board.look_up(server_id)  # as it is now: who has come back may be due by that
            if record.memory("probe").get("status") != "unhealthy":
                await self._ask(server_id)

    async def _ask(self, server_id: str, settle: bool = False) -> None:
        await asyncio.to_thread(self._learn, server_id, settle, len(self.fleet.servers))  # one each, at the most

    async def _release(self, server_id: str, turn: Turn, probe_in: float | None) -> None:
        with contextlib.suppress(RedisError):  # whoever probes next does it again
            await self._schedule.release(server_id, turn, probe_in=probe_in)


@contextlib.contextmanager
def _told(server_id: str) -> Iterator[None]:
    """The log is told where Redis is away and what a probe has found can't be kept."""
    try:
        yield
    except RedisError as error:
        log.warning("probe_not_kept", server=server_id, reason=str(error) or type(error).__name__)
