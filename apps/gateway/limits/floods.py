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


class Floods:
    """Counts over all workers; while Redis can't be asked, each worker goes by its share."""

    def __init__(self, redis: Redis, per_minute: int, workers: Workers):
        self._redis = redis
        self._per_minute = per_minute
        self._own = Share(GlobalLimit(requests_per_minute=0), workers)

    async def check(self, key_id: str) -> None:
        """Admits one request by that key, or raises Refused, which tells the security log whose it was."""
        if refused := await self._refusal(key_id, "This key"):
            refused.whose = key_id
            raise refused

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
        question = Question(Terms((quota,)), None, "", counted=False)
        try:
            wait = int(await self._redis.script(GUARD, (quota.holder, quota.requests)))
        except RedisError:
            verdict, _, seconds = self._own.admit(question, {}, time.monotonic())
            wait = 0 if verdict == ADMITTED else math.ceil(seconds * 1000)
        return refusal(REQUESTS, question, 0, min(wait, WINDOW_MS), []) if wait else None
