"""How many requests wait in Citadel for a place on a server: where servers have limits, the queue forms here."""

from pathlib import Path

from citadel.redis import Redis, Script

WAITING = Script((Path(__file__).parent / "waiting.lua").read_text())


async def waiting(redis: Redis) -> dict[str, int]:
    """The number by server, of those that somebody waits for. RedisError."""
    flat = await redis.script(WAITING, [])
    return {name.decode(): count for name, count in zip(flat[::2], flat[1::2], strict=True)}
