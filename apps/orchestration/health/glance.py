"""The board for those without an event loop: commands, and the pages of the console."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import redis
import structlog

from apps.orchestration.failover import CHANGE
from apps.orchestration.health.board import DEPARTED, FORGET, HEALTH, SAY
from apps.orchestration.health.conditions import ENABLED, HEALTHY, Record
from apps.orchestration.health.loads import HEARTBEATS
from citadel import config

log = structlog.get_logger("citadel.glance")

_record = msgspec.json.Decoder(Record)


def health_in_words() -> Callable[[str], str]:
    """How each server is, by its id, as the board has it now; `unknown` where Redis doesn't tell."""
    try:
        with _connected() as client:
            told: dict[bytes, bytes] = client.hgetall(HEALTH)
    except redis.RedisError:
        return lambda _server_id: "unknown (Redis is away)"
    records = {name.decode(): _record.decode(raw) for name, raw in told.items()}
    return lambda server_id: records.get(server_id, HEALTHY).told


def departed() -> set[str]:
    """The servers that have fallen silent; none where Redis doesn't tell."""
    try:
        with _connected() as client:
            return {name.decode() for name in client.smembers(DEPARTED)}
    except redis.RedisError:
        return set()


def acquit(server_id: str) -> None:
    """Undoes what webhooks and the traffic say of a server's health, and that it has departed: its silence counts again
    from its next heartbeat on. And ends an operator's failover: the next one is another. A later tick tells it. Where
    Redis is away that stands, and the log says so.
    """
    try:
        with _connected() as client:
            raw = client.hget(HEALTH, server_id)
            record = _record.decode(raw) if raw else HEALTHY
            for source in ("webhook", "heartbeat", "traffic"):
                if record.memory(source).get("status", "healthy") == "healthy":
                    continue
                if source == "heartbeat":
                    client.hdel(HEARTBEATS, server_id)
                    client.srem(DEPARTED, server_id)
                client.eval(SAY.text, 0, server_id, source, "healthy", ENABLED, "{}", "[]", "-1")
            client.eval(CHANGE.text, 0, "enabled", server_id)
    except redis.RedisError as error:
        log.warning("webhooks_word_stands", server=server_id, reason=type(error).__name__)


def forget(*server_ids: str) -> None:
    """Takes servers off that are no longer in the registry. Where Redis is away a later tick does, unless a server is
    there again by then, and the log says so.
    """
    try:
        with _connected() as client:
            client.eval(FORGET.text, 0, *server_ids)
    except redis.RedisError as error:
        log.warning("not_forgotten", servers=server_ids, reason=type(error).__name__)


@contextmanager
def _connected() -> Iterator[Any]:
    tree = config.load()
    if not tree.redis_url:
        raise redis.ConnectionError("no Redis")
    limit = tree.timeouts.cache
    with redis.Redis.from_url(tree.redis_url, socket_timeout=limit, socket_connect_timeout=limit) as client:
        yield client
