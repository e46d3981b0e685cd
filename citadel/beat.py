"""Celery's beat by a clock that nobody sets: its own goes by the date, and stands still while that is set back."""

import time
from datetime import datetime
from typing import Any

import structlog
from celery import beat
from celery.schedules import schedstate, schedule
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from citadel.logs import Trouble

log = structlog.get_logger("citadel.beat")

MOST_WAITING = 100
"""Messages in a queue from which no more are put into it: without a worker they would fill Redis."""


UNSENT = (RedisError, OperationalError, OSError, beat.SchedulingError)
"""What is raised where a task can't be sent."""


class Steady(schedule):
    """Every so many seconds. What was missed is not made up for."""

    def __init__(self, seconds: float, **options: Any):
        super().__init__(seconds, **options)
        self._seconds = seconds
        self._next = time.monotonic()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether it is, and in how many seconds to ask again. To ask is to take the turn."""
        now = time.monotonic()
        if now < self._next:
            return schedstate(False, self._next - now)
        following = self._next + self._seconds
        self._next = following if following > now else now + self._seconds
        return schedstate(True, self._next - now)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self._seconds,)


class Entry(beat.ScheduleEntry):
    """An entry of the schedule, by the steady clock."""

    def __init__(self, *, schedule: Any, **details: Any):
        super().__init__(schedule=schedule if isinstance(schedule, Steady) else Steady(float(schedule)), **details)


class Scheduler(beat.Scheduler):
    """Celery's, in memory, with these entries."""

    Entry = Entry

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._absence = Trouble()

    def install_default_entries(self, data: Any) -> None:
        """There are no results to clean up."""

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Sends a task, unless so many wait already that nobody seems to take them. While Redis is away it is left out:
        Celery itself would tell of each with two stacks.
        """
        try:
            sent = self._send(entry, producer, advance, options)
        except UNSENT as error:
            if self._absence.is_news():
                log.warning("tasks_not_sent", reason=str(error) or type(error).__name__)
            return None
        self._absence.is_over()
        return sent

    def _send(self, entry: Any, producer: Any, advance: bool, options: dict[str, Any]) -> Any:
        queue = self.app.amqp.router.route({}, entry.task)["queue"].name
        channel = producer.connection.default_channel
        if channel.queue_declare(queue).message_count >= MOST_WAITING:
            return None
        return super().apply_async(entry, producer=producer, advance=advance, **options)

    def _when(self, entry: Any, next_time_to_run: float, mktime: Any = None) -> float:
        return time.monotonic() + (next_time_to_run or 0)
