"""Where conversations have gone, for the strategy of affinity: what a worker knows of that, and all of them together.

A conversation's next turn may meet another worker. So each tells where it has sent a conversation, over a bounded
stream in Redis, and follows what is told there, its own words too: whatever two workers said at the same time, the last
word in the stream is the last for all.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Container, Mapping

from citadel.redis import Redis, RedisError

STREAM = "fleet:homes"
KNOWN = 20_000
"""Conversations whose server is remembered, by each worker and in the stream."""
EVERY = 0.05
"""Seconds between two exchanges with the other workers, while any model is served by affinity."""
SOON = 0.02
"""Seconds after which what is new is told."""
READ_AT_ONCE = 2000
TOLD_AT_ONCE = 500
COUNTED = 100
"""Conversations of a model after which earlier ones count for half, where it has one server; more with more."""


class Homes:
    """Servers by what the requests of a conversation have in common."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: OrderedDict[int, str] = OrderedDict()
        self._untold: dict[int, str] = {}
        """The servers of those that the others don't know of yet."""
        self._news = asyncio.Event()
        self._settled: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._read_to: bytes | str = "0"
        self.in_use = False
        """Whether any model is served by affinity: only then workers talk about it."""

    @property
    def known(self) -> Mapping[int, str]:
        """All that are remembered."""
        return self._known

    def settled(self, model: str) -> Mapping[str, float]:
        """How many conversations with a model this worker has sent to each server lately."""
        return self._settled.get(model, {})

    def remember(self, affinity: int, server_id: str, model: str) -> None:
        """A conversation has been sent there. Waits for nothing."""
        before = self._known.get(affinity)
        if before != server_id:
            self._count(before, server_id, self._settled[model])
            if len(self._untold) < KNOWN:
                self._untold[affinity] = server_id
                self._news.set()
        self._keep(affinity, server_id)

    def forget_all_but(self, models: Container[str]) -> None:
        """Drops what is no longer in the fleet."""
        for model in [model for model in self._settled if model not in models]:
            del self._settled[model]

    async def exchange_on(self) -> None:
        """Keeps up with the other workers for as long as it runs."""
        while True:
            if self.in_use:
                with contextlib.suppress(RedisError):  # then each has its own homes
                    await self.exchange()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY - SOON):
                    await self._news.wait()
            self._news.clear()
            await asyncio.sleep(SOON)

    async def exchange(self) -> None:
        """Tells what this worker has to say, and takes what has been told since."""
        said = dict(list(self._untold.items())[:TOLD_AT_ONCE])
        await asyncio.gather(*(self._tell(affinity, server_id) for affinity, server_id in said.items()))
        for affinity, server_id in said.items():
            if self._untold[affinity] == server_id:
                del self._untold[affinity]
        told = await self._redis.call("XREAD", "COUNT", READ_AT_ONCE, "STREAMS", STREAM, self._read_to)
        for number, (_, affinity, _, home, *_) in told[0][1] if told else ():
            self._read_to = number
            if int(affinity) not in self._untold:
                self._keep(int(affinity), home.decode())

    def _tell(self, affinity: int, server_id: str) -> "asyncio.Future[object]":
        return self._redis.call("XADD", STREAM, "MAXLEN", "~", KNOWN, "*", "of", affinity, "at", server_id)

    def _keep(self, affinity: int, server_id: str) -> None:
        self._known[affinity] = server_id
        self._known.move_to_end(affinity)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _count(self, before: str | None, server_id: str, settled: Counter[str]) -> None:
        settled[server_id] += 1
        if before is not None and before in settled:
            settled[before] = max(0, settled[before] - 1)
        if settled.total() >= COUNTED * len(settled):
            for name in settled:
                settled[name] //= 2
