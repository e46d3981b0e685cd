"""A look at the board for those without an event loop: commands, and the pages of the console."""

from collections.abc import Callable

import msgspec
import redis

from apps.orchestration.health.board import HEALTH
from apps.orchestration.health.conditions import HEALTHY, Record
from citadel import config
from citadel.sections import Config

_record = msgspec.json.Decoder(Record)


def health_in_words() -> Callable[[str], str]:
    """How each server is, by its id, as the board has it now; `unknown` where Redis doesn't tell."""
    try:
        records = {name.decode(): _record.decode(raw) for name, raw in _read(config.load()).items()}
    except redis.RedisError:
        return lambda _server_id: "unknown (Redis is away)"
    return lambda server_id: records.get(server_id, HEALTHY).told


def _read(tree: Config) -> dict[bytes, bytes]:
    if not tree.redis_url:
        raise redis.ConnectionError("no Redis")
    limit = tree.timeouts.cache
    with redis.Redis.from_url(tree.redis_url, socket_timeout=limit, socket_connect_timeout=limit) as client:
        told: dict[bytes, bytes] = client.hgetall(HEALTH)
        return told
