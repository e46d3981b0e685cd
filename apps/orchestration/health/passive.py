"""What the traffic of this worker says of each server: who is out, and when it may be tried again.

A refused connection ejects at once; other failures do after `eject_after` in a row, or when they are more than a tenth
of enough answers, unless too many servers of its models are out already: that is for the caller to say. The only server
of a model stays in as long as it only tells of errors, which may be the requests' doing, and any succeeds. Where
requests wait in vain is counted over all workers, by the board. An ejected server is tried again by one real request
after 1, 2, 4 … seconds; while its model has no other server the pause stays short, so that service is back within
seconds of the server. What the board says is followed. Pure: knows no clock but the one handed in.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Literal

FIRST_BACKOFF = 1.0
LONELY_BACKOFF = 4.0
"""Longest pause, in seconds, between trials when every server of a model is out."""
WINDOW = 15.0
"""Seconds of answers, at least, by which a share of failures is told; twice as many at most."""
ENOUGH = 20
"""Answers from which on a share says anything."""
EJECTING_SHARE = 0.10
DEGRADING_SHARE = 0.05
PROVEN_FOR = 10.0
"""Seconds for which a good answer counts for more than bad probes, and than errors that a server tells."""

LAST_FOR = 2.0
"""Seconds for which a server is asked last that fails and may not be out."""

Verdict = Literal["", "ejected", "degraded", "returned", "recovered", "answers"]
"""What has become of a server; empty: nothing new."""


@dataclass(slots=True)
class Window:
    """Good and bad answers of the last 15 to 30 seconds, since the first bad one."""

    began: float
    good: int = 0
    bad: int = 0
    good_before: int = 0
    bad_before: int = 0

    def add(self, now: float, *, good: bool) -> None:
        """Counts an answer."""
        elapsed = now - self.began
        if elapsed >= WINDOW:
            keeps = elapsed < 2 * WINDOW
            self.good_before, self.bad_before = (self.good, self.bad) if keeps else (0, 0)
            self.good = self.bad = 0
            self.began = now
        if good:
            self.good += 1
        else:
            self.bad += 1

    @property
    def share(self) -> float:
        """Of bad answers; 0 while there are too few to tell."""
        return (self.bad + self.bad_before) / self._total if self.is_enough else 0.0

    @property
    def is_enough(self) -> bool:
        """Whether there are enough answers to tell."""
        return self._total >= ENOUGH

    @property
    def _total(self) -> int:
        return self.good + self.bad + self.good_before + self.bad_before

    @property
    def is_clean(self) -> bool:
        """Whether nothing bad is left in it."""
        return not (self.bad or self.bad_before)


@dataclass(slots=True)
class Standing:
    """One server as this worker sees it; `retry_at` is None while it is in the rotation."""

    window: Window
    failures: int = 0
    """In a row."""
    failing_since: float = 0.0
    """When the first of them came."""
    failed_at: float = float("-inf")
    """When the last one came; never, once a whole answer has."""
    retry_at: float | None = None
    backoff: float = 0.0
    trying_since: float | None = None
    degraded: bool = False
    silent: bool = False
    """Whether a request of any worker has waited there in vain, and none has been answered since."""
    silent_since: float = 0.0
    """When the first request began that has waited in vain here since the last good answer; 0: none has."""
    failing: bool = False
    """Whether a request of any worker has failed there, and none has been answered whole since."""
    on_board: float | None = None
    """Since when the board is known to say that it is out."""
    proven_at: float = float("-inf")
    """When it last answered although the board says that it is out."""


class Standings:
    """All servers' standings. Only servers in trouble have an entry, so the healthy path is one look-up."""

    def __init__(self, *, eject_after: int, max_backoff: float, trial_limit: float):
        self._eject_after = eject_after
        self._max_backoff = max_backoff
        self._trial_limit = trial_limit
        self._troubled: dict[str, Standing] = {}
        self._pauses: dict[tuple[str, str], float] = {}
        """Until when servers are asked last, for one model or (`""`) all of theirs."""
        self._answered: dict[str, float] = {}
        """When each server last answered, or began to, as far as this worker knows."""
        self.version = 0
        """Another one whenever somebody goes out or comes back."""
        self.on_move: Callable[[], object] = lambda: None
        """Told of that, in the midst of it."""

    def __getitem__(self, server_id: str) -> Standing | None:
        return self._troubled.get(server_id)

    def in_rotation(self, server_id: str) -> bool:
        """Whether ordinary traffic may go there."""
        standing = self._troubled.get(server_id)
        return standing is None or standing.retry_at is None

    def pause(self, server_id: str, model: str, now: float, seconds: float) -> bool:
        """Has a server asked last, for a model or (`""`) any; whether that is news."""
        news = self._pauses.get((server_id, model), now) <= now
        self._pauses[server_id, model] = max(self._pauses.get((server_id, model), now), now + seconds)
        self.version += news
        return news

    def ask_last(self, server_id: str, now: float) -> None:
        """Has a server asked last for a while that fails and may not be out."""
        self.pause(server_id, "", now, LAST_FOR)

    @property
    def has_pauses(self) -> bool:
        """Whether any server may have one."""
        return bool(self._pauses)

    def is_paused(self, server_id: str, model: str, now: float) -> bool:
        """Whether others are to be asked before it."""
        paused = False
        for key in ((server_id, ""), (server_id, model)) if self._pauses else ():
            if (until := self._pauses.get(key)) is None:
                continue
            if now < until:
                paused = True
            else:
                del self._pauses[key]
        return paused

    def trial_due(self, server_id: str, now: float, *, lonely: bool = False) -> bool:
        """Whether an ejected server may get its one trial now."""
        return self.retry_in(server_id, now, lonely=lonely) <= 0 and not self._trying(server_id, now)

    def retry_in(self, server_id: str, now: float, *, lonely: bool = False) -> float:
        """Seconds until an ejected server may be tried; `lonely` where its model has no other."""
        standing = self._troubled.get(server_id)
        if standing is None or standing.retry_at is None:
            return 0.0
        excess = max(0.0, standing.backoff - LONELY_BACKOFF) if lonely else 0.0
        return standing.retry_at - excess - now

    def begin_trial(self, server_id: str, now: float) -> None:
        """Marks that a request is on its way to an ejected server, so that no second one follows."""
        if (standing := self._troubled.get(server_id)) and standing.retry_at is not None:
            standing.trying_since = now

    def abandon_trial(self, server_id: str) -> None:
        """The trial's client left before there was an answer: the next request may try."""
        if standing := self._troubled.get(server_id):
            standing.trying_since = None

    def postpone_trial(self, server_id: str, until: float) -> None:
        """Another worker tries it, so the next trial is not before `until`."""
        if (standing := self._troubled.get(server_id)) and standing.retry_at is not None:
            standing.trying_since = None
            standing.retry_at = until
            standing.backoff = min(standing.backoff, LONELY_BACKOFF)  # the lease keeps the pace from here on

    def begun(self, server_id: str, now: float) -> Verdict:
        """Takes the good beginning of a stream, which may bring the server back. Earlier failures still count until a
        whole answer: a server that breaks off every stream goes out all the same.
        """
        self._answered[server_id] = now
        standing = self._troubled.get(server_id)
        if standing is None:
            return ""
        was_silent, standing.silent, standing.silent_since = standing.silent, False, 0.0
        if standing.retry_at is None:
            return "answers" if was_silent else ""
        self._bring_back(standing, now)
        return "returned"

    def succeeded(self, server_id: str, now: float) -> Verdict:
        """Takes a good answer."""
        self._answered[server_id] = now
        standing = self._troubled.get(server_id)
        if standing is None:
            return ""
        was_out, was_degraded = standing.retry_at is not None, standing.degraded
        was_in_trouble = standing.silent or standing.failing
        standing.silent = standing.failing = False
        standing.silent_since = 0.0
        standing.failures = 0
        standing.failed_at = float("-inf")
        standing.proven_at = now
        standing.window.add(now, good=True)
        if was_out:
            self._bring_back(standing, now)
            standing.window = Window(now)
        if standing.window.share <= DEGRADING_SHARE / 2 and standing.window.is_enough:
            standing.degraded = False
        if standing.window.is_clean and standing.on_board is None:
            del self._troubled[server_id]
        if was_out:
            return "returned"
        if was_degraded and not standing.degraded:
            return "recovered"
        return "answers" if was_in_trouble else ""

    def failed(
        self,
        server_id: str,
        now: float,
        *,
        refused: bool = False,
        trial: bool = False,
        may_eject: bool = True,
        alone: bool = False,
        told: bool = False,
    ) -> Verdict:
        """Takes a failure, of the one trial of an ejected server or of any other request.

        Not `may_eject`: too many of its models' servers are out already for this to be told by traffic alone; it is
        asked last for a while. Is it `alone` with a model, it goes out only when nothing works any more, not for a
        share of failures; and for a failure that it has `told` itself, which may be the request's doing, only when
        nothing has worked for a while.
        """
        standing = self._troubled.setdefault(server_id, Standing(Window(now)))
        if not standing.failures:
            standing.failing_since = now
        standing.failures += 1
        standing.failing, standing.failed_at = True, now
        standing.window.add(now, good=False)
        was_in = standing.retry_at is None
        if trial:
            standing.trying_since = None
        if not was_in and not trial:
            return ""  # a request that was under way when the server went out says nothing new
        doubtful = alone and told and now - standing.failing_since < PROVEN_FOR
        is_bad = self._is_bad(standing, alone)
        if was_in and is_bad and not may_eject:
            self.ask_last(server_id, now)
        if was_in and not (refused or (may_eject and not doubtful and is_bad)):
            return self._degrade(standing)
        self._back_off(standing, now)
        if not was_in:
            return ""
        standing.on_board = None
        self._move()
        return "ejected"

    def is_silent(self, server_id: str) -> bool:
        """Whether somebody has waited in vain there since its last good answer, in any worker."""
        standing = self._troubled.get(server_id)
        return standing is not None and standing.silent

    def fell_silent(self, server_id: str, since: float) -> None:
        """A request has waited there in vain `since` then, or since a good answer that came later: the next one is news
        for all workers.
        """
        if standing := self._troubled.get(server_id):
            since = max(since, self._answered.get(server_id, since))
            standing.silent = True
            standing.silent_since = min(standing.silent_since or since, since)

    def follow_troubled(self, silent: Set[str], failing: Set[str], just_now: float) -> None:
        """Takes from the board where requests of any worker wait in vain, or fail. Of those that have failed here since
        `just_now` it may not know yet.
        """
        for server_id in (silent | failing) - self._troubled.keys():
            self._troubled[server_id] = Standing(Window(0.0))
        for server_id, standing in self._troubled.items():
            if standing.failed_at < just_now:
                is_in = standing.retry_at is None and standing.on_board is None
                if is_in and standing.silent and server_id not in silent:  # another worker has got an answer
                    self._answered[server_id] = max(just_now, self._answered.get(server_id, 0.0))
                standing.silent, standing.failing = server_id in silent, server_id in failing
                standing.silent_since = standing.silent_since if standing.silent else 0.0

    def is_in_trouble(self, server_id: str, *, silent: bool) -> bool:
        """Whether a server of the rotation is `silent`, else fails, and has given no good answer since."""
        standing = self._troubled.get(server_id)
        if standing is None or standing.retry_at is not None:
            return False
        return standing.silent if silent else standing.failing

    def eject(self, server_id: str, now: float) -> None:
        """Puts a server out that no worker gets an answer from."""
        if standing := self._troubled.get(server_id):
            self._back_off(standing, now)
            standing.on_board = None
            self._move()

    def put_out(self, server_id: str, now: float) -> bool:
        """The board says that a server is out; whether that is news."""
        standing = self._troubled.setdefault(server_id, Standing(Window(now)))
        if standing.on_board is None:
            standing.on_board = now
        if standing.retry_at is None and now - standing.proven_at > PROVEN_FOR:
            standing.backoff = FIRST_BACKOFF
            standing.retry_at = now + standing.backoff
            self._move()
            return True
        return False

    def follow(self, out: Set[str], asked_at: float, now: float) -> list[str]:
        """Takes what the board says: who is out. What it did not know yet when it was `asked_at` stays as it is.

        Gives those that are news.
        """
        news = [server_id for server_id in out if self.put_out(server_id, now)]
        for server_id, standing in list(self._troubled.items()):
            if server_id not in out and standing.on_board is not None and standing.on_board < asked_at:
                del self._troubled[server_id]
                self._move()
        return news

    def pardon(self, server_id: str, now: float) -> None:
        """It may not be out: too many others are. It is asked last for a while."""
        standing = self._troubled.get(server_id)
        if standing and standing.on_board is None:
            self.ask_last(server_id, now)
            standing.retry_at = standing.trying_since = None
            standing.failures, standing.backoff = 0, 0.0
            standing.window = Window(standing.window.began)
            self._move()

    def forgive(self, server_id: str) -> None:
        """The last failure was the request's own doing."""
        standing = self._troubled.get(server_id)
        if standing and standing.retry_at is None:
            standing.failures = max(0, standing.failures - 1)
            standing.window.bad = max(0, standing.window.bad - 1)

    def forget_all_but(self, server_ids: frozenset[str]) -> None:
        """Drops servers that are no longer in the fleet."""
        self._troubled = {name: standing for name, standing in self._troubled.items() if name in server_ids}
        self._pauses = {key: until for key, until in self._pauses.items() if key[0] in server_ids}
        self._answered = {name: at for name, at in self._answered.items() if name in server_ids}
        self._move()

    def _move(self) -> None:
        self.version += 1
        self.on_move()

    def _back_off(self, standing: Standing, now: float) -> None:
        standing.backoff = min(standing.backoff * 2 or FIRST_BACKOFF, self._max_backoff)
        standing.retry_at = now + standing.backoff

    def _is_bad(self, standing: Standing, alone: bool) -> bool:
        return standing.failures >= self._eject_after or (not alone and standing.window.share > EJECTING_SHARE)

    def _degrade(self, standing: Standing) -> Verdict:
        if standing.degraded or standing.window.share <= DEGRADING_SHARE:
            return ""
        standing.degraded = True
        return "degraded"

    def _bring_back(self, standing: Standing, now: float) -> None:
        standing.retry_at = standing.trying_since = None
        standing.proven_at = now
        self._move()

    def _trying(self, server_id: str, now: float) -> bool:
        standing = self._troubled.get(server_id)
        return bool(standing and standing.trying_since is not None and now - standing.trying_since < self._trial_limit)
