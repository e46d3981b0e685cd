"""Answers kept in Redis (the cache instance), by the digest of who asks what.

A chat's entry is one answer; of embeddings each input has its own. Whoever looks for an entry that isn't there leads:
others who ask the same, in any worker, wait for what comes of it. The lead is a lease, renewed while the leader lives.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from citadel.gathering import Gathering
from citadel.redis import Redis, RedisError, Script

FIND_OR_LEAD = Script((Path(__file__).parent / "find_or_lead.lua").read_text())
HOLD_LEAD = (Path(__file__).parent / "hold_lead.lua").read_text()
LEASE = 3.0
RENEW = 1.0
LOOK_AGAIN = 0.025
"""Seconds after which a worker that waits for another worker's answer looks again."""
RECENT = 0.25
"""Seconds for which a worker answers out of its own memory what it has just found."""
RECENT_BYTES = 8 * 1024 * 1024


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """An answer worth keeping, as its server sent it: whole, or as the events of a stream."""

    body: bytes
    streamed: bool
    server: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Recent:
    """Entries found in the last moment: what is asked for all the time need not be fetched each time.

    They are forgotten together, so none is older than `RECENT`; `RECENT_BYTES` of them are kept at most.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._size = 0
        self.get = self._entries.get

    def keep(self, key: str, entry: Entry) -> None:
        """Keeps an entry for a moment, if there is room."""
        if self._size + len(entry.body) > RECENT_BYTES:
            return
        if not self._entries:
            asyncio.get_running_loop().call_later(RECENT, self._forget)
        self._size += len(entry.body)
        self._entries[key] = entry

    def _forget(self) -> None:
        self._entries.clear()
        self._size = 0


class ResponseCache:
    """This worker's door to the cache. When Redis is away nothing is found and nothing kept."""

    def __init__(self, redis: Redis, *, largest: int):
        self._redis = redis
        self._largest = largest
        self._mark = f"lead:{secrets.token_hex(8)}"
        """Stands in Redis for the entries that this worker is making."""
        self._leads: dict[str, float] = {}
        self._recent = Recent()
        self._gathering: Gathering[str, bytes | int] = Gathering(self._find, self._unclaimed)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to renew the leads that this worker holds."""
        self._task = asyncio.create_task(self._renew(), name="cache leads")

    async def stop(self) -> None:
        """Gives up what it leads."""
        if self._task:
            self._task.cancel()
        self._hold(list(self._leads), 0)
        self._leads.clear()

    async def find_or_lead(self, key: str) -> Entry | None:
        """The entry, or None for the one who is to make it: who must `keep` or `give_up` then. May wait for another."""
        if entry := self._recent.get(key):
            return entry
        while True:
            try:
                found = await self._gathering.ask(key)
            except RedisError:
                return None
            if isinstance(found, bytes):
                return self._read(key, found)
            if found == 1:
                return None
            await asyncio.sleep(LOOK_AGAIN)

    async def lead(self, key: str) -> bool:
        """Takes the lead, which ends with `give_up`. Gives whether another had it until now."""
        waited = False
        with contextlib.suppress(RedisError):
            while await self._gathering.ask(key) == 0:
                waited = True
                await asyncio.sleep(LOOK_AGAIN)
        return waited

    def keep(self, key: str, entry: Entry, ttl: int) -> None:
        """Keeps an answer for `ttl` seconds, if it isn't too large. Where it stands the lead was marked."""
        if len(entry.body) <= self._largest:
            self._recent.keep(key, entry)
            self._redis.tell("SET", key, _encode(entry), "EX", ttl)
            self._leads.pop(key, None)

    def give_up(self, key: str) -> None:
        """Ends the lead: whoever asks next leads."""
        if self._leads.pop(key, None) is not None:
            self._hold([key], 0)

    async def find_vectors(self, keys: Sequence[str]) -> list[bytes | None]:
        """For each key what is kept under it, or None."""
        try:
            found: list[bytes | None] = await self._redis.call("MGET", *keys)
        except RedisError:
            return [None] * len(keys)
        return found

    def keep_vector(self, key: str, vector: bytes, ttl: int) -> None:
        """Keeps one input's embedding for `ttl` seconds."""
        self._redis.tell("SET", key, vector, "EX", ttl)

    async def _find(self, keys: list[str]) -> list[bytes | int]:
        found: list[bytes | int] = await self._redis.script(FIND_OR_LEAD, (self._mark, int(LEASE * 1000), *keys))
        for key, result in zip(keys, found, strict=True):
            if result == 1:
                self._leads[key] = asyncio.get_running_loop().time()
        return found

    def _unclaimed(self, key: str, found: bytes | int) -> None:
        if found == 1:
            self.give_up(key)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW)
            old = asyncio.get_running_loop().time() - RENEW
            self._hold([key for key, since in self._leads.items() if since < old], LEASE)

    def _hold(self, keys: Sequence[str], seconds: float) -> None:
        """Keeps this worker's leads for so long; 0 ends them."""
        if keys:
            self._redis.tell("EVAL", HOLD_LEAD, 0, self._mark, int(seconds * 1000), *keys)

    def _read(self, key: str, found: bytes) -> Entry | None:
        """What was found, if it is an entry of this version's."""
        try:
            entry = _decode(found)
        except msgspec.DecodeError:
            return None
        self._recent.keep(key, entry)
        return entry
