"""The share of failures among a server's answers of late. Pure."""

from dataclasses import dataclass

WINDOW = 15.0
"""Seconds of answers, at least, by which a share of failures is told; twice as many at most."""
ENOUGH = 20
"""Answers from which on a share says anything."""


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

    def forgive(self) -> None:
        """The last bad one does not count."""
        self.bad = max(0, self.bad - 1)

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
