"""Tells Django about this app."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """The audit app."""

    name = "apps.audit"
    verbose_name = "Audit"
