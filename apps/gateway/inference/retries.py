"""How much load attempts beyond the first may add: a bucket that requests fill and retries empty. Pure."""

FLOOR = 10.0
"""Retries a second that are allowed whatever the traffic."""
MOST = 100.0
"""What the bucket holds: a server that fails under load fails for many requests at once."""


class Bucket:
    """Admits extra calls for at most `share` of all requests, and `floor` a second besides."""

    def __init__(self, share: float, now: float, floor: float = FLOOR):
        self._share = share
        self._floor = floor
        self._tokens = MOST if floor else 1.0
        self._at = now

    def earn(self) -> None:
        """A request has begun."""
        self._tokens = min(MOST, self._tokens + self._share)

    def spend(self, now: float) -> bool:
        """Whether one more call may be made."""
        self._tokens = min(MOST, self._tokens + (now - self._at) * self._floor)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
