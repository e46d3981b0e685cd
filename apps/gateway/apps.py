"""Tells Django about this app."""

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """The gateway app."""

    name = "apps.gateway"
    verbose_name = "Gateway"
