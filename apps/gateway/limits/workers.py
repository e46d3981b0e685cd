"""How many workers share the limits while Redis can't be asked. Pure."""

import math

BACK_WITHIN = 4.0
"""Seconds after which all workers have told a Redis that was away that they live."""


class Workers:
    """Those of the whole installation that lived when Redis last told, and no fewer than this machine has."""

    def __init__(self, here: int):
        self._here = here
        self._living = 0
        self._lost_at = -math.inf

    @property
    def count(self) -> int:
        """Among so many a limit is divided."""
        return max(self._here, self._living)

    def told(self, living: int, now: float) -> None:
        """Takes what Redis says: so many live, or 0 where it does not know this one, and so need not know the others.

        `now` is monotonic. After that, or after it was away, fewer are no news until all have had time to come back.
        """
        if not living:
            self.lost(now)
        elif living > self._living or now - self._lost_at > BACK_WITHIN:
            self._living = living

    def lost(self, now: float) -> None:
        """Redis is away, or may have been."""
        self._lost_at = now
