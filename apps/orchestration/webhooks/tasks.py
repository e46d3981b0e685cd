"""Celery's entries."""

from celery import shared_task

from apps.orchestration.webhooks import outgoing
from citadel import config


@shared_task(name="webhooks.deliver")
def deliver() -> None:
    """Sends the events that are due."""
    outgoing.deliver_due(config.load())


@shared_task(name="webhooks.prune")
def prune() -> None:
    """Forgets what is too old."""
    outgoing.prune(config.load().webhooks)
