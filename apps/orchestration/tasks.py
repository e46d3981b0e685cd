"""Celery's entries, which only call what is told elsewhere. `fleet.…` is for the probers, the rest for the workers."""

from functools import cache
from threading import Lock
from typing import Any

import structlog
from celery import shared_task
from celery.signals import worker_shutdown
from django.core.exceptions import ValidationError

from apps.orchestration import registry
from apps.orchestration.discovery import DiscoveryFailed
from apps.orchestration.health.prober import Prober
from apps.orchestration.models import Server
from citadel import config
from citadel.redis import RedisError

log = structlog.get_logger("citadel.tasks")

_queueing = Lock()
"""Held by whoever counts what waits and adds to it."""


@cache
def prober() -> Prober:
    """This process's."""
    return Prober(config.load(), have_learned)


def have_learned(server_id: str, settle: bool, most: int) -> None:
    """Has a worker ask a server for its models, unless `most` questions wait already: nobody seems to ask them, and
    they would fill Redis. Its next turn comes.
    """
    with _queueing, learn.app.producer_or_acquire() as producer:
        queue = learn.app.amqp.router.route({}, learn.name)["queue"].name
        if producer.connection.default_channel.queue_declare(queue).message_count < most:
            learn.apply_async((server_id, settle), producer=producer)


@worker_shutdown.connect
def _stop_probing(**_details: Any) -> None:
    if prober.cache_info().currsize:
        prober().stop()


@shared_task(name="fleet.tick", acks_late=False)
def tick(every: float) -> None:
    """A tick of the fleet's clock, of which there is one `every` seconds however many are sent."""
    try:
        prober().tick(every)
    except (RedisError, TimeoutError) as error:
        log.warning("tick_lost", reason=str(error) or type(error).__name__)


@shared_task(name="servers.learn")
def learn(server_id: str, settle: bool = False) -> None:
    """Brings a server's models up to date, where it is to be called; `settle` as discovery has it."""
    try:
        registry.discover_and_keep(server_id, settle=settle)
    except Server.DoesNotExist:
        return  # it has gone meanwhile
    except (DiscoveryFailed, ValidationError) as failure:
        log.info("models_not_learned", server=server_id, reason=str(failure))
