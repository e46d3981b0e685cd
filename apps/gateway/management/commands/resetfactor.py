"""`bin/manage resetfactor NAME`: somebody has lost the second factor, and the codes for when it is lost."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.contrib.auth import get_user_model
from django.core.management.base import CommandError, CommandParser

from apps.gateway.access.console.store import end_all
from citadel import command


class Command(command.Command):
    """Takes the second factors of somebody who uses the console away, and ends their sessions."""

    help = "Takes somebody's second factors for the console away; the next sign-in goes by password alone."

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose."""
        parser.add_argument("username", help="whose second factors")

    def handle(self, *args: Any, **options: Any) -> None:
        """Says how many there were."""
        name = options["username"]
        user = get_user_model()._default_manager.filter(username=name).first()
        if user is None:
            raise CommandError(f"There is no account {name!r}.")
        factors = Authenticator.objects.filter(user_id=user.pk)
        kinds = sorted({factor.get_type_display() for factor in factors})
        factors.delete()
        end_all(user.pk)
        self.stdout.write(f"Taken away from {name}: {', '.join(kinds)}." if kinds else f"{name} has none.")
