"""What the commands of `bin/manage` have in common that are Citadel's own."""

from typing import Any

from django import get_version
from django.core.management.base import BaseCommand, CommandParser

from citadel import __version__

NAME = "bin/manage"
VERSION = f"Citadel {__version__} (Django {get_version()})"


class Command(BaseCommand):
    """A command whose help tells of nothing but itself: Django's options are there, but nobody looks for them."""

    suppressed_base_arguments = {
        "--version",
        "--verbosity",
        "--settings",
        "--pythonpath",
        "--traceback",
        "--no-color",
        "--force-color",
    }
    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """The parser of the command's words, which calls it what people type."""
        parser = super().create_parser("", f"{NAME} {subcommand}", **kwargs)  # of a path Django takes the last part
        parser.prog = parser.prog.strip()
        for action in parser._actions:  # argparse would call a verb that is missing "verb"
            if action.choices and not action.option_strings:
                action.metavar = f"{{{','.join(map(str, action.choices))}}}"
        return parser

    def get_version(self) -> str:
        """Citadel's, and of what its commands are made."""
        return VERSION
