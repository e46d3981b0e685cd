"""`bin/manage config show`: the configuration in force."""

import os
from argparse import ArgumentParser
from typing import Any

from citadel import command, config


class Command(command.Command):
    """Shows each setting, its value, and where it came from."""

    help = "Shows what configuration is in force and where each value came from; secrets are hidden."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The one verb."""
        parser.add_argument("verb", choices=["show"])

    def handle(self, *_args: Any, **_options: Any) -> None:
        """Prints a line a setting, and which files are none of them."""
        for name, value, origin in config.shown(*config.read(os.environ)):
            self.stdout.write(f"{name} = {value}  # {origin}")
        home = config.home_folder()
        for path in config.unread(home):
            self.stderr.write(f"Not read: {path}. Settings stand in {home / config.YAML_FILES[0]}")
