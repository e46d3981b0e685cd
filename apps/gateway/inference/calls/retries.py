"""How much load attempts beyond the first may add: a bucket that requests fill and extra attempts empty. Pure."""

FLOOR = 10.0
"""Retries a second that are allowed whatever the traffic, over all workers."""
MOST = 100.0
"""What all workers' buckets hold: a server that fails under load fails for many requests at once."""
LEAST = 20.0
"""What each worker's holds at least: a server that is killed breaks all answers at once that a worker has there."""


class Bucket:
    """Admits extra calls for at most `share` of all requests, and `floor` a second besides. It begins with `begins`."""

    def __init__(self, share: float, now: float, *, floor: float, most: float, begins: float):
        self._share = share
        self._floor = floor
        self._most = most
        self._tokens = begins
        self._at = now

    @classmethod
    def of_worker(cls, share: float, now: float, workers: int) -> "Bucket":
        """One of so many workers' buckets for retries, full."""
        most = max(LEAST, MOST / workers)
        return cls(share, now, floor=FLOOR / workers, most=most, begins=most)

    def earn(self) -> None:
        """A request has begun."""
        self._tokens = min(self._most, self._tokens + self._share)

    def spend(self, now: float) -> bool:
        """Whether one more call may be made."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._floor)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
