"""Celery's entry for what is done behind the console's back."""

from importlib import import_module

from celery import shared_task
from django.conf import settings


@shared_task(name="console.prune")
def prune() -> None:
    """Forgets sessions that have ended, those of strangers who only looked at the form among them."""
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
