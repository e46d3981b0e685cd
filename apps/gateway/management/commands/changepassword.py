"""`bin/manage changepassword [NAME]`: Django's, which takes the administrator where no name is said."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.management.commands import changepassword
from django.core.management.base import CommandError, CommandParser

from citadel import command


class Command(command.Command, changepassword.Command):
    """Changes the password of somebody who uses the console."""

    help = "Changes a password for the console."

    def add_arguments(self, parser: CommandParser) -> None:
        """Django's own, told as it is here."""
        parser.add_argument("username", nargs="?", help="the first administrator unless said")
        parser.set_defaults(database="default")

    def handle(self, *args: Any, **options: Any) -> Any:
        """Asks for the password twice; Django would take the name that the person has on this machine."""
        if not options["username"]:
            administrators = get_user_model()._default_manager.filter(is_superuser=True, is_active=True)
            if (first := administrators.order_by("date_joined").first()) is None:
                raise CommandError("There is no administrator: say whose password it is.")
            options["username"] = first.get_username()
        return super().handle(*args, **options)
