"""What traffic has shown of one server, and what follows from its next answer or failure. Pure."""

from dataclasses import dataclass, field
from typing import Literal

from apps.orchestration.health.conditions import Bar
from apps.orchestration.health.evidence import Company, Evidence
from apps.orchestration.health.trials import Trials
from apps.orchestration.health.window import Window

EJECTING_SHARE = 0.10
DEGRADING_SHARE = 0.05
SAY_AGAIN = 60.0
"""Seconds after which it is said again that a server is degraded: what nobody says any more is forgotten."""
PROVEN_FOR = 10.0
"""Seconds for which a good answer counts for more than bad probes, and than errors that a server tells."""

Verdict = Literal["", "ejected", "degraded", "returned", "recovered", "answers"]
"""What has become of a server; empty: nothing new."""


@dataclass(slots=True)
class Standing:
    """One server as this worker sees it."""

    window: Window
    trials: Trials = field(default_factory=Trials)
    failures: int = 0
    """In a row."""
    failing_since: float = 0.0
    """When the first of them came."""
    failed_at: float = float("-inf")
    """When the last one came; never, once a whole answer has."""
    degraded_at: float | None = None
    """When it was last said to be degraded; None: it is not."""
    silent: bool = False
    """Whether a request of any worker has waited there in vain, and none has been answered since."""
    silent_since: float = 0.0
    """When the first request began that has waited in vain here since the last good answer; 0: none has."""
    failing: bool = False
    """Whether a request of any worker has failed there, and none has been answered whole since."""
    on_board: float | None = None
    """Since when the board is known to say that it is out."""
    proven_at: float = float("-inf")
    """When a good answer last brought it back, or came though the board has it out for what no traffic has found."""
    bar: Bar = ""
    """Why the board has it out whatever it answers."""

    def begun(self, now: float, *, trial: bool) -> Verdict:
        """Takes the good beginning of a stream. Earlier failures still count until a whole answer."""
        was_silent, self.silent, self.silent_since = self.silent, False, 0.0
        if self.trials.retry_at is None or self._is_kept_out(trial=trial):
            return "answers" if was_silent else ""
        self.trials.end()
        self.proven_at = now
        self.window = Window(now)
        return "returned"

    def succeeded(self, now: float, *, trial: bool) -> Verdict:
        """Takes a good answer."""
        was_in_trouble = self.silent or self.failing
        self.silent, self.silent_since = False, 0.0
        self.failing, self.failures, self.failed_at = False, 0, float("-inf")
        if self._is_kept_out(trial=trial):
            return "answers" if was_in_trouble else ""
        if self.trials.retry_at is not None or (self.on_board is not None and self.bar != "failing"):
            self.proven_at = now
        if self.trials.retry_at is not None:
            self.trials.end()
            self.window = Window(now)
            return "returned"
        self.window.add(now, good=True)
        few_fail = self.window.is_enough and self.window.share <= DEGRADING_SHARE / 2
        if self.degraded_at is not None and (few_fail or self.window.is_clean):
            self.degraded_at = None
            return "recovered"
        return "answers" if was_in_trouble else ""

    def barred(self, bar: Bar) -> None:
        """Takes why the board has it out whatever it answers: what it has answered so far proves nothing against it."""
        if bar and bar != self.bar:
            self.proven_at = float("-inf")
        self.bar = bar

    def _is_kept_out(self, *, trial: bool) -> bool:
        """Whether a good answer leaves it out: with a bar all but the trial's, after a webhook's word any."""
        return self.trials.retry_at is not None and (self.bar == "webhook" or (self.bar != "" and not trial))

    def failed(self, now: float) -> None:
        """Takes a failure."""
        if not self.failures:
            self.failing_since = now
        self.failures += 1
        self.failing, self.failed_at = True, now
        self.window.add(now, good=False)

    def is_bad(self, eject_after: int, *, alone: bool) -> bool:
        """Whether it fails too often: so many times in a row, or, where it is not `alone`, for too large a share."""
        return self.failures >= eject_after or (not alone and self.window.share > EJECTING_SHARE)

    def is_to_go(self, now: float, evidence: Evidence, company: Company, eject_after: int) -> bool:
        """Whether the failure that came `now` ejects it.

        One that is alone goes out for what it tells itself only when nothing has worked for a while.
        """
        if not company.may_eject:
            return evidence == "refused"
        if evidence in ("refused", "unreachable"):
            return True
        doubtful = company.alone and evidence == "told" and now - self.failing_since < PROVEN_FOR
        return not doubtful and self.is_bad(eject_after, alone=company.alone)

    def degrade(self, now: float) -> Verdict:
        """Takes it for degraded where many answers are failures, though it stays in."""
        is_said = self.degraded_at is not None and now - self.degraded_at < SAY_AGAIN
        if is_said or self.window.share <= DEGRADING_SHARE:
            return ""
        self.degraded_at = now
        return "degraded"

    def forgive(self) -> None:
        """The last failure was the request's own doing; what came of it stays."""
        if self.trials.retry_at is None:
            self.failures = max(0, self.failures - 1)
            self.window.forgive()

    def pardon(self, now: float) -> None:
        """It is in after all, and its past is forgotten."""
        self.trials.end()
        self.trials.backoff, self.failures = 0.0, 0
        self.window = Window(now)
