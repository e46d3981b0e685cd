"""Tells Django about this app."""

from django.apps import AppConfig


class OrchestrationConfig(AppConfig):
    """The orchestration app."""

    name = "apps.orchestration"
    verbose_name = "Orchestration"
