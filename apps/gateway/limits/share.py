"""One worker's share of all limits, by which it goes while Redis can't be asked, by its own clock. Pure.

Each of N workers, on however many machines, admits an Nth of what a limit allows, and one at least: all together at
most the limit, or one each.
"""

from collections import deque
from collections.abc import Mapping

from apps.gateway.limits.admission import ADMITTED, AT_ONCE, GLOBAL, REQUESTS, TOKENS, TOO_LARGE, Question
from apps.gateway.limits.quotas import Quota
from apps.gateway.limits.workers import Workers
from citadel.sections import GlobalLimit

WINDOW = 60.0
ONE_ENDS_IN = 1.0
"""Seconds; of which nobody knows when."""
MOST_KNOWN = 10_000
"""Holders whose admissions are remembered; beyond that those whose windows are empty are forgotten."""
FORGETS_EVERY = 1.0
"""Seconds, at least: it takes milliseconds."""


class _Window:
    """What a holder was admitted in the last 60 s: the times of its requests, and those of tokens, by ticket."""

    __slots__ = ("admitted", "tokens")

    def __init__(self) -> None:
        self.admitted: deque[float] = deque()
        self.tokens: dict[str, tuple[float, int]] = {}
        """The oldest first."""

    def move_on(self, now: float) -> None:
        while self.admitted and self.admitted[0] <= now - WINDOW:
            self.admitted.popleft()
        for ticket in [ticket for ticket, (at, _) in self.tokens.items() if at <= now - WINDOW]:
            del self.tokens[ticket]

    def until_so_many(self, tokens: int, part: int) -> float | None:
        """When the last of those was admitted that must leave before so many tokens more are within that part; None
        where they are already: one that is alone may be more than it.
        """
        held = sum(size for _, size in self.tokens.values())
        if not held or held + tokens <= part:
            return None
        for at, size in self.tokens.values():
            held -= size
            if not held or held + tokens <= part:
                return at
        return None


class Share:
    """What this one of the workers has admitted by itself."""

    def __init__(self, limit: GlobalLimit, workers: Workers):
        self._workers = workers
        self._limit = limit
        self._left, self._at = float(limit.burst), 0.0
        self._windows: dict[str, _Window] = {}
        self._forgot = -FORGETS_EVERY

    def admit(self, question: Question, running: Mapping[str, int], now: float) -> tuple[int, int, float]:
        """Admits a request that has terms, or not: the verdict as of `admit.lua`, which quota says so (-1: none), and
        the seconds after which it may be another. `running`: of this worker, by holder; `now` is monotonic.
        """
        quotas = question.terms.quotas if question.terms else ()
        refusals = [
            (*refusal, number)
            for number, quota in enumerate(quotas)
            if (refusal := self._refusal(quota, question, running, now))
        ]
        if refusals:
            retry, verdict, number = max(refusals)
            return verdict, number, 0.0 if verdict == TOO_LARGE else retry  # which no time makes another
        if retry := self._until_global(now):
            return GLOBAL, -1, retry
        self._left -= 1
        for quota in quotas:
            self._take(quota, question, now)
        return ADMITTED, -1, 0.0

    def withdraw(self, question: Question) -> None:
        """What was admitted last, and just now, finds no place: it counts no more."""
        self._left += 1
        for quota in question.terms.quotas if question.terms else ():
            if quota.requests or quota.tokens:
                self._windows[quota.holder].admitted.pop()

    def settle(self, question: Question, used: int, now: float) -> None:
        """Makes what a request has reserved what it has used. What is beyond counts from `now` on."""
        for quota in question.terms.quotas if question.terms else ():
            window = self._windows.get(quota.holder)
            if not (window and quota.tokens):
                continue
            if used > question.tokens:
                window.tokens[f"{question.ticket}+"] = now, used - question.tokens
            elif question.ticket in window.tokens:
                window.tokens[question.ticket] = window.tokens[question.ticket][0], used

    def _refusal(
        self, quota: Quota, question: Question, running: Mapping[str, int], now: float
    ) -> tuple[float, int] | None:
        if quota.tokens and question.tokens > quota.tokens:
            return float("inf"), TOO_LARGE
        window = self._windows.get(quota.holder)
        if window:
            window.move_on(now)
            if quota.requests and len(window.admitted) >= self._part(quota.requests):
                return window.admitted[len(window.admitted) - self._part(quota.requests)] + WINDOW - now, REQUESTS
            leaves = window.until_so_many(question.tokens, self._part(quota.tokens)) if quota.tokens else None
            if leaves is not None:
                return leaves + WINDOW - now, TOKENS
        if quota.concurrent and question.counted and running.get(quota.holder, 0) >= self._part(quota.concurrent):
            return ONE_ENDS_IN, AT_ONCE
        return None

    def _take(self, quota: Quota, question: Question, now: float) -> None:
        if not (quota.requests or quota.tokens):
            return
        if (
            quota.holder not in self._windows
            and len(self._windows) >= MOST_KNOWN
            and now >= self._forgot + FORGETS_EVERY
        ):
            self._forget_empty(now)
        window = self._windows.setdefault(quota.holder, _Window())
        window.admitted.append(now)
        if quota.tokens and question.tokens:
            window.tokens[question.ticket] = now, question.tokens

    def _part(self, limit: int) -> int:
        return max(1, limit // self._workers.count)

    def _until_global(self, now: float) -> float:
        """Seconds until the bucket of all clients has one more; 0 where it has."""
        if not (self._limit.requests_per_minute and self._limit.burst):
            return 0.0
        rate = self._limit.requests_per_minute / self._workers.count / WINDOW
        burst = max(1.0, self._limit.burst / self._workers.count)
        self._left = min(burst, self._left + max(0.0, now - self._at) * rate)
        self._at = now
        return (1 - self._left) / rate if self._left < 1 else 0.0

    def _forget_empty(self, now: float) -> None:
        self._forgot = now
        for window in self._windows.values():
            window.move_on(now)
        self._windows = {holder: window for holder, window in self._windows.items() if window.admitted or window.tokens}
