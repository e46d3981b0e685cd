"""One look at a server, by the fleet's clock or since somebody asks for it: a probe, and all that follows from it."""

import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from apps.orchestration.fleet import Fleet, Server
from apps.orchestration.health.board import Board, Change
from apps.orchestration.health.changes import tell_change
from apps.orchestration.health.conclusion import conclude, thresholds_of
from apps.orchestration.health.conditions import UNKNOWN, Load
from apps.orchestration.health.probes import Probes
from apps.orchestration.health.schedule import Schedule, learn_soon
from apps.orchestration.health.states import Memory, Outcome, in_doubt
from citadel.background import Background
from citadel.database import Pool
from citadel.redis import RedisError
from citadel.sections import Config

LOADED = "loaded"
ASK_AGAIN_MS, ASK_AGAIN_AT_MOST_MS = 10_000, 300_000
"""Between the first two questions to a server that answers, while nobody knows what it is and has; each time twice as
long.
"""
SETTLED_AFTER = 10
"""Such questions, which take half an hour: who then still answers as no server of models does is a plain web server,
unless its kind was told.
"""


class Examiner:
    """Probes servers. `fleet` gives the snapshot in force, `learn` has a server asked for its models, elsewhere, and
    its kind settled or not; what no probe waits for is done in the `background`.
    """

    def __init__(
        self,
        config: Config,
        board: Board,
        pool: Pool,
        background: Background,
        *,
        fleet: Callable[[], Fleet],
        learn: Callable[[str, bool], Coroutine[Any, Any, None]],
    ):
        self._bounds = config.scaling
        self._paces = config.health
        self._thresholds = thresholds_of(config)
        self._board = board
        self._pool = pool
        self._background = background
        self._fleet = fleet
        self._learn = learn
        self.probes = Probes(config)

    async def start(self) -> None:
        """Makes ready to probe."""
        await self.probes.start()

    async def stop(self) -> None:
        """Probes no more."""
        await self.probes.stop()

    async def examine(self, server: Server, load: Load, now: float) -> Memory | None:
        """Probes a server and says what follows; gives what is remembered of it then, None where that says nothing.

        `load` is what is known of it at `now`, in milliseconds by Redis's clock. RedisError where it can't be kept.
        """
        outcome, found = await self.probes.probe(server)
        if outcome is None or self.is_gone(server):
            return None
        if found is not UNKNOWN:
            await self._board.loads.observe(server.server_id, found)
        if self._is_much(load) and not outcome.strain:
            outcome = msgspec.structs.replace(outcome, strain=LOADED)
        after = await self.conclude(server.server_id, outcome, now)
        if not outcome.failure:
            await self.ask_what_it_is(server.server_id)
        return after

    def pace(self, after: Memory | None) -> float:
        """Seconds from the beginning of a probe to the next one, by what is remembered after it."""
        is_decided = after is None or not in_doubt(after, self._thresholds)
        return self._paces.interval if is_decided else self._paces.fast_interval

    async def conclude(self, server_id: str, outcome: Outcome, now: float) -> Memory:
        """Says on the board what follows from an outcome, and gives that. RedisError."""
        concluded = await conclude(self._board, server_id, outcome, self._thresholds, now)
        for change in concluded.changes:
            self._tell(server_id, change)
        return concluded.memory

    async def ask_what_it_is(self, server_id: str) -> None:
        """Has a server that answers asked for its kind and models where nobody could find these out yet: it may have
        registered before it listened, and is never unhealthy then. Of all probers one does that, less and less often.
        """
        now = self._fleet().servers.get(server_id)
        if now is None or now.known:
            return
        with contextlib.suppress(RedisError):
            if times := await self._take_question(now):
                self._background.begin(self._learn(server_id, times >= SETTLED_AFTER))

    def is_gone(self, server: Server) -> bool:
        """Whether a server has been removed or has another address now: what was found at the one it had says nothing
        of it.
        """
        now = self._fleet().servers.get(server.server_id)
        return now is None or now.url != server.url

    def _tell(self, server_id: str, change: Change) -> None:
        """Lets all know of a change; the probe does not wait for that."""
        self._background.begin(tell_change(self._board, self._pool, change))
        if change.before == "unhealthy" and change.record.status != "unhealthy":
            self._background.begin(self._learn(server_id, False))

    async def _take_question(self, server: Server) -> int:
        """Which question it is that a server is to be asked now, 0 where none is; at another address it is another."""
        call, place = self._board.redis.call, f"{server.server_id} {server.url}"
        turn, asked = f"fleet:turn:kind:{place}", f"fleet:asked:kind:{place}"
        if not await call("SET", turn, 1, "NX", "PX", ASK_AGAIN_MS):
            return 0
        await call("SET", asked, 0, "NX", "PX", 2 * ASK_AGAIN_AT_MOST_MS)  # what INCR makes would stay if we die then
        times = int(await call("INCR", asked))
        pause = min(ASK_AGAIN_AT_MOST_MS, ASK_AGAIN_MS * 2 ** min(times - 1, 10))
        await call("PEXPIRE", turn, pause)
        await call("PEXPIRE", asked, 2 * ASK_AGAIN_AT_MOST_MS)
        return times

    def _is_much(self, load: Load) -> bool:
        """Whether processors or queue are over their bounds; that memory is taken is what it is there for."""
        return (load.cpu or 0.0) > self._bounds.cpu or (load.queue or 0) > self._bounds.queue


async def examine_now(server: Server, config: Config, board: Board, pool: Pool, fleet: Callable[[], Fleet]) -> None:
    """Examines a server once, beside the clock of the fleet but under the same lease, so that no two probes run at once
    and none counts that comes too soon; waits for its turn, and is content with another's probe that has begun since.
    The probers ask it for its models where that is due.

    RedisError where what is found can't be kept.
    """

    async def learn(server_id: str, _settle: bool) -> None:
        await learn_soon(board.redis, server_id)

    schedule = Schedule(board.redis, config)
    turn = await schedule.take_now(server.server_id)
    if turn is None:
        return
    background = Background("probe on demand")
    examiner = Examiner(config, board, pool, background, fleet=fleet, learn=learn)
    begun, pace = time.monotonic(), config.health.fast_interval
    await examiner.start()
    try:
        load = (await board.loads.read()).get(server.server_id, UNKNOWN)
        pace = examiner.pace(await examiner.examine(server, load, turn.now))
        await background.wait()
    finally:
        with contextlib.suppress(RedisError):  # the lease runs out
            await schedule.release(server.server_id, turn, probe_in=max(0.0, begun + pace - time.monotonic()))
        await background.stop()
        await examiner.stop()
