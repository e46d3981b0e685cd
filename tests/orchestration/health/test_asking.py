"""Servers are asked for their models by the worker, and hold up nothing else there."""

import asyncio
import secrets
import time
from typing import Any

import pytest
import redis
from celery import Celery

from apps.orchestration import tasks
from apps.orchestration.fleet import Server
from citadel.beat import Scheduler
from citadel.celery import app, broker
from tests.citadel.test_redis_address import store
from tests.instance import Instance
from tests.orchestration.health.watchers import configured, snapshot, watching

__all__ = ["store"]

SERVERS = 200
QUIET = {"interval": 600.0, "fast_interval": 600.0, "connect_interval": 600.0}
MODELS_TTL = 2.0


@pytest.fixture
def unread(store: str) -> Any:
    """An app as ours, on a Redis of its own, from which no worker takes anything."""
    other = Celery("unread", set_as_current=False)
    other.conf.update(broker(f"unix://{store}"), task_default_queue="work", task_routes=app.conf.task_routes)
    yield other
    other.close()


async def test_questions_that_nobody_asks_stay_as_many_as_servers_and_hold_up_no_webhook(
    citadel: Instance, unread: Celery, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "learn", unread.tasks["servers.learn"])
    config = configured(citadel, health=QUIET, cache={"models_ttl": MODELS_TTL})
    servers = [Server(f"a-{number}", "http://127.0.0.1:1", "openai") for number in range(SERVERS)]
    with redis.Redis(unix_socket_path=store) as admin:
        async with watching(citadel, config, snapshot(servers)) as watcher:
            monkeypatch.setattr(watcher.rounds, "_learn", tasks.have_learned)
            await watcher.watch(2.5 * MODELS_TTL)
            waiting = admin.llen("discovery")
            assert SERVERS / 2 < waiting <= SERVERS
        await asyncio.to_thread(deliver_soon, unread)
        assert admin.llen("work") >= 1


def deliver_soon(other: Celery) -> None:
    """A beat of webhooks alone, for as long as an event may wait for it."""
    other.conf.beat_schedule = {"webhooks": {"task": "webhooks.deliver", "schedule": 1.0}}
    scheduler, end = Scheduler(other, max_interval=0.1), time.monotonic() + 2
    while time.monotonic() < end:
        time.sleep(min(0.1, max(0.0, scheduler.tick())))
    scheduler.close()


async def test_who_is_out_by_its_probes_is_not_asked_until_it_is_back(citadel: Instance) -> None:
    name = f"a-{secrets.token_hex(4)}"
    config = configured(citadel, health=QUIET, cache={"models_ttl": 0.3})
    async with watching(citadel, config, snapshot([Server(name, "http://127.0.0.1:1", "openai")])) as watcher:
        await watcher.watch(1.0)
        assert watcher.learned
        await watcher.board.say(name, "probe", "unhealthy", "refused")
        await watcher.watch(0.3)
        watcher.learned.clear()
        await watcher.watch(1.0)
        assert not watcher.learned
        await watcher.board.say(name, "probe", "healthy")
        await watcher.watch(1.0)
        assert watcher.learned
