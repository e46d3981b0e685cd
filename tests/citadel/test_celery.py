"""Celery on the state Redis: reached however its address says, and a beat that no clock's step holds up."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from citadel.beat import MOST_WAITING, Scheduler
from citadel.celery import app, broker
from tests.citadel.test_redis_address import TLS, encrypted, store
from tests.faults.stores import OwnRedis

__all__ = ["store"]


def carry(url: str) -> bytes:
    """What comes out of a queue there after it was put in, by an app that is set up as ours."""
    other = Celery("other", set_as_current=False)
    other.conf.update(broker(url), broker_transport_options={**app.conf.broker_transport_options, "max_retries": 1})
    with other.connection_for_write() as connection:
        queue = connection.SimpleQueue("test-carried")
        queue.put(url)
        message = queue.get(timeout=3)
        message.ack()
        return message.payload.encode()


def test_by_a_socket(store: str) -> None:
    with redis.Redis(unix_socket_path=store) as admin:
        admin.execute_command("ACL", "SETUSER", "me", "on", ">p/a@s:s w+rd", "~*", "&*", "+@all")
        urls = [
            f"unix://{store}",
            f"unix://{store}?db=3",
            f"unix://{store}?db=3&username=me&password=p%2Fa%40s%3As%20w%2Brd",
        ]
        urls.append(f"unix://me:p%2Fa%40s%3As%20w%2Brd@{store}?db=3")
        assert [carry(url) for url in urls] == [url.encode() for url in urls]
        assert admin.info("keyspace").keys() >= {"db0", "db3"}
        admin.config_set("requirepass", "hidden")
    assert carry(f"unix://:hidden@{store}").endswith(store.encode())
    with pytest.raises(OperationalError):
        carry(f"unix://:wrong@{store}")


async def test_through_tls(store: str) -> None:
    async with encrypted(store) as port:
        for query, good in (
            ("", False),
            (f"?ssl_ca_certs={TLS / 'certificate.pem'}", True),
            ("?ssl_cert_reqs=none", True),
        ):
            url = f"rediss://localhost:{port}/2{query}"
            if good:
                assert await asyncio.to_thread(carry, url) == url.encode()
            else:
                with pytest.raises(OperationalError):
                    await asyncio.to_thread(carry, url)


class Counting(Scheduler):
    """Counts instead of sending."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sent: list[str] = []
        super().__init__(*args, **options)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        self.sent.append(entry.name)


@pytest.fixture
def beat() -> Iterator[tuple[Counting, Celery]]:
    """A scheduler with two entries of ten times a second."""
    other = Celery("other", broker="memory://", set_as_current=False)
    other.conf.beat_schedule = {name: {"task": name, "schedule": 0.1} for name in ("one", "two")}
    yield Counting(other, max_interval=0.05), other


@pytest.mark.parametrize("step", [timedelta(), timedelta(minutes=10), timedelta(minutes=-10)])
def test_the_beat_goes_on_when_the_clock_is_set(beat: tuple[Counting, Celery], step: timedelta) -> None:
    scheduler, other = beat
    begun = time.monotonic()
    other.now = lambda: datetime.now(UTC) + (step if time.monotonic() - begun > 0.5 else timedelta())
    while time.monotonic() - begun < 2.0:
        time.sleep(min(0.05, max(0.0, scheduler.tick())))
    for name in ("one", "two"):
        assert 15 <= scheduler.sent.count(name) <= 21


def test_what_was_missed_is_not_made_up_for(beat: tuple[Counting, Celery]) -> None:
    scheduler, _ = beat
    for _ in range(3):
        scheduler.tick()
    time.sleep(0.5)
    scheduler.sent.clear()
    for _ in range(10):
        scheduler.tick()
    assert sorted(scheduler.sent) == ["one", "two"]


def test_a_queue_that_nobody_reads_stays_short(store: str) -> None:
    other = Celery("other", set_as_current=False)
    other.conf.update(broker(f"unix://{store}"))
    other.conf.update(beat_schedule={"one": {"task": "one", "schedule": 0.001}}, task_default_queue="unread")
    scheduler = Scheduler(other, max_interval=0.001)
    for _ in range(4 * MOST_WAITING):
        scheduler.tick()
        time.sleep(0.001)
    with redis.Redis(unix_socket_path=store) as admin:
        assert admin.llen("unread") == MOST_WAITING
    scheduler.close()


def test_tasks_that_can_not_be_sent_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While Redis is away: that is told once, and not by two stacks for each; the next one after it is sent."""
    own = OwnRedis(tmp_path)
    own.start()
    other = Celery("other", set_as_current=False, amqp=app.amqp_cls)
    other.conf.update(broker(own.url), broker_transport_options=app.conf.broker_transport_options)
    other.conf.update(beat_schedule={"one": {"task": "one", "schedule": 0.1}}, task_default_queue="unread")
    scheduler = Scheduler(other, max_interval=0.1)

    def tick_on(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(max(0.0, scheduler.tick()))

    tick_on(0.5)
    own.kill()
    tick_on(2)
    [told] = [record for record in caplog.records if record.levelname != "INFO"]
    assert "tasks_not_sent" in told.getMessage()
    own.start()
    tick_on(1)
    with redis.Redis.from_url(own.url) as admin:
        assert admin.llen("celery:unread") >= 5
    own.kill()
    scheduler.close()


def test_what_runs_where() -> None:
    app.loader.import_default_modules()
    queues = {
        name: app.amqp.router.route({}, name)["queue"].name
        for name in ("fleet.tick", "servers.learn", "webhooks.deliver")
    }
    assert queues == {"fleet.tick": "probes", "servers.learn": "discovery", "webhooks.deliver": "work"}
    assert queues.keys() <= app.tasks.keys()
    assert {entry["task"] for entry in app.conf.beat_schedule.values()} <= app.tasks.keys()
