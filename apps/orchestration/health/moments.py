"""Times of the board: by Redis's clock, and as the API tells them."""

from datetime import UTC, datetime

from citadel.redis import Redis


async def clock(redis: Redis) -> int:
    """Redis's clock, in milliseconds since the epoch. RedisError."""
    seconds, microseconds = await redis.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def moment(milliseconds: float) -> str | None:
    """A time since the epoch in ISO 8601; None where there is none."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat() if milliseconds else None
