"""The share of failures among a server's answers of late: this worker's, and with them those of all others. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

WINDOW = 15.0
"""Seconds of answers, at least, by which a share of failures is told; twice as many at most."""
ENOUGH = 20
"""Answers from which on a share says anything."""


class Tally(NamedTuple):
    """Answers of one server."""

    good: int
    bad: int


NONE = Tally(0, 0)


@dataclass(slots=True)
class Window:
    """Good and bad answers of the last 15 to 30 seconds, since the first bad one."""

    began: float
    good: int = 0
    bad: int = 0
    good_before: int = 0
    bad_before: int = 0
    shared: Tally = NONE
    """Those of all workers that are told, this one among them; nothing without Redis."""
    opened: float = field(init=False)
    """When nothing was counted yet."""
    _good_untold: int = 0
    _bad_untold: int = 0
    """Those of this worker that are not in it yet. Less than none: one that is has been forgiven."""

    def __post_init__(self) -> None:
        self.opened = self.began

    def add(self, now: float, *, good: bool) -> None:
        """Counts an answer."""
        self._move_on(now)
        if good:
            self.good += 1
            self._good_untold += 1
        else:
            self.bad += 1
            self._bad_untold += 1

    def forgive(self) -> None:
        """The last bad one does not count."""
        if self.bad:
            self.bad -= 1
            self._bad_untold -= 1

    def take_untold(self, now: float) -> Tally:
        """This worker's answers since this was last asked, as far as they are of late."""
        self._move_on(now)
        untold = self._untold
        self._good_untold = self._bad_untold = 0
        return untold

    @property
    def share(self) -> float:
        """Of bad answers; 0 while there are too few to tell."""
        return self._known.bad / sum(self._known) if self.is_enough else 0.0

    @property
    def is_enough(self) -> bool:
        """Whether there are enough answers to tell."""
        return sum(self._known) >= ENOUGH

    @property
    def is_clean(self) -> bool:
        """Whether nothing bad is left in it, nor to be taken back from what is told."""
        return not (self._own.bad or self._of_all.bad or self._untold.bad)

    @property
    def _own(self) -> Tally:
        return Tally(self.good + self.good_before, self.bad + self.bad_before)

    @property
    def _untold(self) -> Tally:
        """While nobody takes it, it is no more than what is of late."""
        return Tally(min(self._good_untold, self._own.good), min(self._bad_untold, self._own.bad))

    @property
    def _of_all(self) -> Tally:
        untold = self._untold
        return Tally(self.shared.good + untold.good, max(0, self.shared.bad + untold.bad))

    @property
    def _known(self) -> Tally:
        """Whichever says more: without Redis, and after it has forgotten, that is what this worker has seen itself."""
        return max(self._of_all, self._own, key=sum)

    def _move_on(self, now: float) -> None:
        elapsed = now - self.began
        if elapsed >= WINDOW:
            keeps = elapsed < 2 * WINDOW
            self.good_before, self.bad_before = (self.good, self.bad) if keeps else (0, 0)
            self.good = self.bad = 0
            self.began = now
