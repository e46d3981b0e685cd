"""What has been spent: PostgreSQL knows, which adds it up as audit records are written; Redis counts along, and begins
with what PostgreSQL says.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import psycopg
import structlog

from apps.gateway.limits.budgets import BILLION, IN_PURSE, Claim, Purse
from apps.gateway.limits.workers import Workers
from apps.orchestration import events
from apps.orchestration.messages import BudgetWarning
from citadel.database import Pool
from citadel.errors import Unavailable
from citadel.redis import Redis, RedisError, Script

log = structlog.get_logger("citadel.budgets")

LOOK_EVERY = 10.0
WRITTEN_WITHIN = 1.0
"""Seconds in which what was charged is in the database: whoever looks for it at once looks once more then."""
WITHIN = 5.0
"""Seconds that the database may take."""
KEPT_FOR = 3600.0
"""Seconds for which a purse that nobody asks for is looked after."""
FORGOTTEN_AFTER = 40 * 86400
"""Seconds after which Redis forgets what nobody has asked to count: longer than a month."""
SHARES = (80, 100)
"""Hundredths of a budget whose spending is told as an event."""
_SPENT = """
SELECT asked.name, coalesce(sum(spend.tokens), 0), coalesce(sum(spend.money), 0)
FROM unnest(%s::text[], %s::text[], %s::date[], %s::date[]) AS asked (name, holder, begins, ends)
LEFT JOIN gateway_spend spend ON spend.holder = asked.holder AND spend.day >= asked.begins
    AND (asked.ends IS NULL OR spend.day < asked.ends)
GROUP BY asked.name
"""
# Not of a bound that has been changed since: a worker knows that of the last request which it has seen.
_WARN = """
INSERT INTO gateway_warned AS told (budget_id, begins, unit, share, bound, at)
SELECT id, %(begins)s, %(unit)s::text, %(share)s, %(bound)s, now() FROM gateway_budget
WHERE id = %(budget)s AND CASE %(unit)s WHEN 'tokens' THEN tokens ELSE money * 1e9 END = %(bound)s
ON CONFLICT (budget_id, begins, unit, share) DO UPDATE SET bound = excluded.bound, at = excluded.at
WHERE told.bound < excluded.bound
"""
# What was charged while Redis could not be told, or died with another Redis, is made up for.
_RAISE = Script(
    """
local at = 1
while at < #ARGV do
    local key, spent = 'limits:spent:' .. ARGV[at], ARGV[at + 1]
    local known = redis.call('GET', key)
    if known and tonumber(known) < tonumber(spent) then
        redis.call('SET', key, spent, 'KEEPTTL')
    end
    at = at + 2
end
"""
)


class Ledger:
    """This worker's knowledge of what has been spent out of the purses that its requests ask for."""

    def __init__(self, pool: Pool, redis: Redis, workers: Workers):
        self._pool = pool
        self._redis = redis
        self._workers = workers
        self._purses: dict[str, tuple[Purse, float]] = {}
        """By name, and when they were last asked for."""
        self._spent: Mapping[str, int] = {}
        """As PostgreSQL has last said."""
        self._charged: Counter[str] = Counter()
        """By this worker, of which PostgreSQL did not know then, by purse."""
        self._lately: deque[tuple[float, str, int]] = deque()
        """What of that it may not know either when it says so next: the monotonic time, the purse, how much."""
        self._warned: set[tuple[Purse, int]] = set()
        """What needs no second look, by the purse with its bound, and the share."""
        self._soon = asyncio.Event()
        self._telling: dict[str, asyncio.Task[None]] = {}

    def charge(self, purse: Purse, amount: int) -> None:
        """Notes what a request has taken out of a purse."""
        now = time.monotonic()
        while self._lately and self._lately[0][0] < now - WRITTEN_WITHIN - WITHIN:
            self._lately.popleft()
        self._lately.append((now, purse.name, amount))
        self._charged[purse.name] += amount
        self.look_after([purse])

    def look_after(self, purses: Iterable[Purse]) -> None:
        """Somebody asks for these purses: their budgets are told of when they come to their end, whichever worker it
        was that spent them.
        """
        for purse in purses:
            self._purses[purse.name] = (purse, time.monotonic())

    async def tell(self, purses: Sequence[Purse]) -> None:
        """Tells Redis what has been spent of purses of which it doesn't know, once for all who ask at the same time.

        Raises Unavailable where PostgreSQL doesn't say, and RedisError.
        """
        new = [purse for purse in purses if purse.name not in self._telling]
        if new:
            task = asyncio.create_task(self._tell(new), name="budgets told")
            for purse in new:
                self._telling[purse.name] = task
            task.add_done_callback(lambda _: [self._telling.pop(purse.name) for purse in new])
        for task in {self._telling[purse.name] for purse in purses}:
            await asyncio.shield(task)

    async def refusing(
        self, claims: Sequence[Claim], running: Mapping[str, int], held: Sequence[int] = ()
    ) -> int | None:
        """Which of the claims there isn't enough for, as far as this worker can tell by itself; None for none.

        What is left is shared with the other workers, but one request of each may have it alone. `running`: what this
        worker's requests may take out, by `$` and the purse; `held`: what of that this very request has claimed before,
        of each. Unavailable.
        """
        unknown = [claim.purse for claim in claims if claim.purse.name not in self._spent]
        if unknown:
            await self._look_up(unknown)
        for number, claim in enumerate(claims):
            name, left = claim.purse.name, claim.purse.limit - self._spent.get(claim.purse.name, 0)
            before = held[number] if held else 0
            others, amount = self._charged[name] + running.get(IN_PURSE + name, 0) - before, before + claim.amount
            if amount > left or (others and (others + amount) * self._workers.count > left):
                return number
        return None

    def look_soon(self) -> None:
        """Redis has been away, and does not know what was charged meanwhile."""
        self._soon.set()

    async def keep_on(self) -> None:
        """Looks after the purses that are in use, until it is cancelled."""
        wait = LOOK_EVERY
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), wait)
            wait = WRITTEN_WITHIN if self._soon.is_set() else LOOK_EVERY
            self._soon.clear()
            try:
                await self.look()
            except (psycopg.Error, OSError, RedisError) as error:  # TimeoutError is an OSError
                log.warning("budgets_unchecked", reason=type(error).__name__)

    async def look(self) -> None:
        """Reads what has been spent, has Redis catch up, and tells of budgets that come to their end."""
        until = time.monotonic() - KEPT_FOR
        self._purses = {name: known for name, known in self._purses.items() if known[1] > until}
        purses = {purse for purse, _ in self._purses.values()}
        self._warned = {told for told in self._warned if told[0] in purses}
        begun, found = time.monotonic(), await self._read(list(purses)) if purses else {}
        self._spent, self._charged = found, self._charged_since(begun - WRITTEN_WITHIN)
        if not purses:
            return
        await self._redis.script(_RAISE, [part for one in found.items() for part in one])
        for purse, _ in list(self._purses.values()):
            await self._warn(purse, found.get(purse.name, 0))

    def _charged_since(self, moment: float) -> Counter[str]:
        """What was charged from then on, by purse; no further back than the database may take to say what it knows."""
        since: Counter[str] = Counter()
        for at, name, amount in self._lately:
            if at > moment:
                since[name] += amount
        return since

    async def _tell(self, purses: Sequence[Purse]) -> None:
        spent = await self._look_up(purses)
        for purse in purses:
            key = f"limits:spent:{purse.name}"
            await self._redis.call("SET", key, spent[purse.name], "NX", "EX", FORGOTTEN_AFTER)

    async def _look_up(self, purses: Iterable[Purse]) -> Mapping[str, int]:
        asked, begun = list(purses), time.monotonic()
        try:
            found = await self._read(asked)
        except (psycopg.Error, OSError) as error:
            log.warning("budget_look_up_failed", reason=type(error).__name__)
            message = "What has been spent can't be looked up at the moment."
            raise Unavailable(message, code="budget_unavailable", retry_after=2) from None
        self._spent = {**self._spent, **found}
        since = self._charged_since(begun - WRITTEN_WITHIN)
        for name in found:
            self._charged[name] = since[name]
        self.look_after(asked)
        return found

    async def _read(self, purses: Sequence[Purse]) -> Mapping[str, int]:
        names = [purse.name for purse in purses]
        holders = [purse.budget.holder for purse in purses]
        begins, ends = [purse.begins for purse in purses], [purse.ends for purse in purses]
        async with asyncio.timeout(WITHIN), self._pool.connection() as connection:
            rows = await (await connection.execute(_SPENT, (names, holders, begins, ends))).fetchall()
        units = {purse.name: purse.unit for purse in purses}
        return {name: int(tokens if units[name] == "tokens" else money * BILLION) for name, tokens, money in rows}

    async def _warn(self, purse: Purse, spent: int) -> None:
        """Tells, once for all workers, that so much of a bound is spent in this period; again when it was raised."""
        budget, unit, begins = purse.budget, purse.unit, purse.begins
        for share in SHARES:
            if spent * 100 < purse.limit * share or (purse, share) in self._warned:
                continue
            row = {"budget": budget.number, "begins": begins, "unit": unit, "share": share, "bound": purse.limit}
            async with events.in_turn(self._pool) as connection:
                done = await connection.execute(_WARN, row)
                if done.rowcount:
                    first = begins.isoformat() if purse.ends else None
                    told = BudgetWarning(budget.holder, budget.period, first, unit, share)
                    await events.tell_in_turn(connection, "", told)
            self._warned.add((purse, share))
