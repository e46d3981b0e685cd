"""Tells Django about this app."""

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """The gateway app."""

    name = "apps.gateway"
    verbose_name = "Gateway"

    def ready(self) -> None:
        """Listens to what Django and allauth tell."""
        from apps.gateway.access.console import roles, second_factor, session  # noqa: F401
