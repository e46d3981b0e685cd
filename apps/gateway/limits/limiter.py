"""Asks Redis whether a request may run: all requests of a turn of the loop in one script, in one round trip.

What is counted and what "N a minute" means stands in `admit.lua`. A worker holds the truth about what it runs itself
and tells it again after Redis has forgotten it. Without Redis requests are admitted uncounted, and that is logged.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import structlog

from citadel.answer import Headers
from citadel.caller import Caller
from citadel.config import GlobalLimit
from citadel.errors import LimitExceeded
from citadel.redis import Argument, Gathering, Redis, RedisUnavailable, Script

log = structlog.get_logger("citadel.limits")

ADMIT = Script((Path(__file__).parent / "admit.lua").read_text())
LEASE = 4.0
"""Seconds of silence after which a worker is dead and what it ran counts no more."""
HEARTBEAT = 1.0
RELEASE_WITHIN = 0.01
NARROW = 32
"""Requests at once that a client may have begun elsewhere before this worker hears of it."""

_REASONS = {
    1: ("All clients together send more requests than this Citadel admits.", "global_rate_limit_exceeded"),
    2: ("This key has used up its requests a minute.", "rate_limit_exceeded"),
    3: ("This key has as many requests running as it may have at once.", "concurrency_limit_exceeded"),
}

Verdict = Sequence[int]
Asked = tuple[str, int, int]


class Admission(NamedTuple):
    """A request that may run. Must be released once."""

    client: str
    concurrent: int
    """What the client may run at once, if this request counts against that, else 0."""
    limit: int
    remaining: int
    reset_ms: int

    def headers(self) -> Headers:
        """`x-ratelimit-…`; without a limit there is nothing to say."""
        if not self.limit:
            return []
        return [
            (b"x-ratelimit-limit-requests", b"%d" % self.limit),
            (b"x-ratelimit-remaining-requests", b"%d" % self.remaining),
            (b"x-ratelimit-reset-requests", duration(self.reset_ms)),
        ]


class Refused(LimitExceeded):
    """A limit said no; its headers tell the client where it stands."""

    def __init__(self, verdict: int, retry_ms: int, standing: Headers):
        message, code = _REASONS[verdict]
        super().__init__(message, code=code, retry_after=retry_ms / 1000)
        self._standing = standing

    def headers(self) -> Headers:
        """`retry-after` and `x-ratelimit-…`."""
        return [*super().headers(), *self._standing]


class Limiter:
    """This worker's side of the limits."""

    def __init__(self, redis: Redis, limit: GlobalLimit):
        self._redis = redis
        self._worker = secrets.token_hex(8)
        self._global = (limit.requests_per_minute, limit.burst)
        self._running: Counter[str] = Counter()
        self._released: Counter[str] = Counter()
        self._everywhere: dict[str, int] = {}
        """What each client ran in all workers together when Redis was last asked about it."""
        self._gathering: Gathering[Asked, Verdict] = Gathering(self._ask, self._unclaimed)
        self._tasks: set[asyncio.Task[object]] = set()
        self._in_doubt = False
        self._blind = False
        """Whether Redis could not be asked of late."""
        self._flush: asyncio.TimerHandle | None = None

    async def admit(self, caller: Caller, *, counted: bool = True) -> Admission:
        """Lets one request of `caller` in, or raises Refused.

        Not `counted`: it takes no place among those that the client may run at once.
        """
        concurrent = caller.concurrent if counted else 0
        question = (caller.key_id, caller.requests_per_minute, concurrent)
        told = self._gathering.ask(question)
        try:
            verdict, remaining, reset, retry, everywhere = await told
        except (RedisUnavailable, hiredis.HiredisError):
            return Admission(caller.key_id, 0, 0, 0, 0)
        except asyncio.CancelledError:
            if not told.cancelled() and not told.exception():  # told, and gone before it could be heard
                self._unclaimed(question, told.result())
            raise
        if concurrent:
            self._everywhere[caller.key_id] = everywhere
        admission = Admission(caller.key_id, concurrent, caller.requests_per_minute, remaining, reset)
        if verdict:
            raise Refused(verdict, retry, admission.headers())
        return admission

    def release(self, admission: Admission) -> None:
        """The request has ended: the next call to Redis takes that along, within `RELEASE_WITHIN`.

        Where the client may be near its limit Redis is told in this very moment, ahead of the answer to the client,
        whose next request then finds the place free whatever worker it meets.
        """
        limit = admission.concurrent
        if limit:
            near = limit <= NARROW or self._everywhere.get(admission.client, 0) * 2 >= limit
            self._give_back(admission.client, urgent=near)

    @property
    def running(self) -> int:
        """Requests of this worker that take a place at the moment."""
        return self._running.total()

    def start(self) -> None:
        """Begins to tell Redis that this worker lives."""
        self._spawn(self._beat())

    async def stop(self) -> None:
        """Takes this worker's places back."""
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(RedisUnavailable, hiredis.HiredisError):
            await self._redis.call("ZREM", "limits:workers", self._worker)

    async def _beat(self) -> None:
        while True:
            try:
                if self._in_doubt:
                    await self._take_new_name()
                await self._ask([])
                self._say(blind=False)
            except (RedisUnavailable, hiredis.HiredisError) as error:
                self._in_doubt = True
                self._say(blind=True, reason=str(error)[:200])
            except Exception:  # the outermost edge of this task: without it this worker's places would be forgotten
                log.exception("limits_heartbeat_failed")
            await asyncio.sleep(HEARTBEAT)

    def _say(self, *, blind: bool, **details: str) -> None:
        """Tells the log when counting ends and begins again."""
        if blind and not self._blind:
            log.warning("requests_admitted_uncounted", **details)
        elif self._blind and not blind:
            log.info("requests_counted_again")
        self._blind = blind

    async def _ask(self, asked: list[Asked]) -> Sequence[Verdict]:
        verdicts: list[Verdict]
        name = self._worker
        try:
            known, *verdicts = await self._redis.script(ADMIT, self._arguments(asked))
        except (RedisUnavailable, hiredis.HiredisError):
            self._in_doubt = True
            raise
        for (client, _, concurrent), verdict in zip(asked, verdicts, strict=True):
            if concurrent and not verdict[0]:
                self._running[client] += 1
        if (not known and self.running) or name != self._worker:  # it counted for a name that is given up
            self._in_doubt = True
        return verdicts

    def _arguments(self, asked: Sequence[Asked]) -> list[Argument]:
        """Of the script: what was asked, and what has been released since it was last told."""
        arguments: list[Argument] = [self._worker, int(LEASE * 1000), *self._global, len(self._released)]
        for client, count in self._released.items():
            arguments += (client, count)
        self._released.clear()
        arguments.append(len(asked))
        for question in asked:
            arguments += question
        return arguments

    def _unclaimed(self, question: Asked, verdict: Verdict) -> None:
        """Its client left while Redis was deciding."""
        if question[2] and not verdict[0]:
            self._give_back(question[0], urgent=True)

    def _give_back(self, client: str, *, urgent: bool) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
            self._everywhere.pop(client, None)
        self._released[client] += 1
        if urgent:
            self._release_now()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(RELEASE_WITHIN, self._flush_now)

    def _release_now(self) -> None:
        """A call of its own, on the wire when this returns; nobody waits for what comes of it."""
        try:
            told = self._redis.call("EVALSHA", ADMIT.digest, 0, *self._arguments(()))
        except RedisUnavailable:
            self._in_doubt = True
        else:
            told.add_done_callback(self._doubt_failure)

    def _doubt_failure(self, told: "asyncio.Future[object]") -> None:
        if told.cancelled() or told.exception():
            self._in_doubt = True

    def _flush_now(self) -> None:
        self._flush = None
        if self._released:
            self._gathering.nudge()

    async def _take_new_name(self) -> None:
        """After a call whose fate isn't known, our count in Redis may be wrong: what we run is told anew as another
        worker, and the old one is dead.
        """
        old, self._worker = self._worker, secrets.token_hex(8)
        self._in_doubt = False
        self._released.clear()
        told = [self._redis.call("ZREM", "limits:workers", old)]
        for client, count in self._running.items():
            told.append(self._redis.call("HSET", f"limits:running:{client}", self._worker, count))
        await asyncio.gather(*told)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[object] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def duration(milliseconds: int) -> bytes:
    """A time as OpenAI writes it in its headers: `1m0s`, `6s`, `12ms`."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds
