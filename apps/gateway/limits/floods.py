"""A generous bound on what no other limit counts: everything but inference, so that no client drowns the others."""

import math
import time

from apps.gateway.limits.admission import ADMITTED, REQUESTS, WINDOW_MS, Question, Refused, refusal
from apps.gateway.limits.quotas import Quota, Terms
from apps.gateway.limits.scripts import GUARD
from apps.gateway.limits.share import Share
from apps.gateway.limits.workers import Workers
from citadel.client_address import network_of
from citadel.names import IP
from citadel.redis import Redis, RedisError
from citadel.sections import GlobalLimit

GUARDED = "guard:"
"""Stands before the client, since its inference is counted apart."""
OF_FLEET = 20
"""Times as many heartbeats, registrations and the like a worker takes of one key in a minute: a thousand servers may
share it, and come all at once, to one worker.
"""
MINUTE = WINDOW_MS / 1000
MOST_KNOWN = 10_000
"""Keys of fleets whose requests are counted."""


class Floods:
    """Counts over all workers; while Redis can't be asked, each worker goes by its share."""

    def __init__(self, redis: Redis, per_minute: int, workers: Workers):
        self._redis = redis
        self._per_minute = per_minute
        self._own = Share(GlobalLimit(requests_per_minute=0), workers)
        self._fleets: dict[str, tuple[float, int]] = {}
        """By key: when its minute ends, by the monotonic clock, and how many it has been admitted in it."""

    async def check(self, key_id: str) -> None:
        """Admits one request by that key, or raises Refused, which tells the security log whose it was."""
        if refused := await self._refusal(key_id, "This key"):
            refused.whose = key_id
            raise refused

    def check_fleet(self, key_id: str) -> None:
        """Admits one heartbeat, registration or removal of a server by that key, or raises Refused as above.

        Each worker counts for itself, in each minute that begins with the first of them, without asking Redis: that
        would cost as much as a heartbeat does.
        """
        most, now = OF_FLEET * self._per_minute, time.monotonic()
        if not most:
            return
        ends, admitted = self._fleets.get(key_id, (0.0, 0))
        if ends <= now:
            self._fleets.pop(key_id, None)
            ends, admitted = now + MINUTE, 0
        if admitted >= most:
            question = _question(Quota(key_id, most, 0, 0, "This key, in heartbeats and servers that come and go,"))
            refused = refusal(REQUESTS, question, 0, math.ceil((ends - now) * 1000), [])
            refused.whose = key_id
            raise refused
        if len(self._fleets) >= MOST_KNOWN and key_id not in self._fleets:
            del self._fleets[next(iter(self._fleets))]  # whose minute began before those of all others
        self._fleets[key_id] = ends, admitted + 1

    async def check_stranger(self, address: IP | None) -> None:
        """Admits one request from `address` of somebody who proves nothing, or raises Refused."""
        if refused := await self._refusal(f"address:{network_of(address)}", "Your address"):
            raise refused

    async def _refusal(self, client: str, whose: str) -> Refused | None:
        """Counts a request; what it is told where there were too many."""
        if not self._per_minute:
            return None
        quota = Quota(
            GUARDED + client, self._per_minute, 0, 0, f"{whose}, in all that is not inference or was refused,"
        )
        question = _question(quota)
        try:
            wait = int(await self._redis.script(GUARD, (quota.holder, quota.requests)))
        except RedisError:
            verdict, _, seconds = self._own.admit(question, {}, time.monotonic())
            wait = 0 if verdict == ADMITTED else math.ceil(seconds * 1000)
        return refusal(REQUESTS, question, 0, min(wait, WINDOW_MS), []) if wait else None


def _question(quota: Quota) -> Question:
    """May one request more be admitted, by this alone?"""
    return Question(Terms((quota,)), None, "", counted=False)
