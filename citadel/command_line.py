"""`bin/manage`: Citadel's own commands, and Django's beside them."""

import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from getpass import GetPassWarning
from types import MappingProxyType

from django.core.exceptions import ImproperlyConfigured
from django.core.management import ManagementUtility
from django.db import OperationalError

from citadel.command import NAME, VERSION

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "server": "the servers of the fleet: add, list, refresh, drain, enable, disable, remove",
        "key": "API keys: create, list, revoke",
        "fleet": "the whole fleet as a file: export, diff, apply",
        "config": "show which settings are in force and where each came from",
        "doctor": "look at everything that Citadel stands on, and say how to mend what is wrong",
        "changepassword": "of a user of the console, the administrator unless said",
        "resetfactor": "takes away the second factors of a user of the console, who sets up another",
        "agent": "on another machine: register its server here, and send its heartbeats and load",
    }
)
"""By name, what each is for."""


CUT_OFF = 128 + signal.SIGPIPE
"""The exit code that a shell gives whom nobody listens to any more."""


def main(words: Sequence[str]) -> int:
    """Run the command that WORDS say; gives its exit code, or exits with it itself."""
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # such as head, which has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python itself flushes at its end
        return CUT_OFF


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["help"] and words[1:2] in (["agent"], ["doctor"]):
        words = [words[1], "--help"]
    if words in (["--version"], ["version"]):
        sys.stdout.write(f"{VERSION}\n")
        return 0
    if words[:1] == ["agent"]:  # it runs on machines that have no Citadel: no settings, no database
        from apps.orchestration import agent

        return agent.main(words[1:])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "citadel.settings")
    if words[:1] == ["doctor"]:  # not one of Django's: it must tell what is wrong with Django's own settings too
        from citadel.doctor import rounds

        return rounds.main(words[1:], sys.stdout)
    return _django(words)


class _Utility(ManagementUtility):
    """Django's, with a help page of ours."""

    def main_help_text(self, commands_only: bool = False) -> str:
        if commands_only:
            return "\n".join(sorted({*super().main_help_text(commands_only=True).split(), *COMMANDS}))
        return page()


def _django(words: Sequence[str]) -> int:
    utility = _Utility([NAME, *words])
    utility.prog_name = NAME
    warnings.simplefilter("ignore", GetPassWarning)  # getpass itself says that what is typed may be seen
    try:
        utility.execute()
    except (ImproperlyConfigured, OperationalError) as problem:
        sys.stderr.write(f"{_in_our_words(problem)}\n")
        return 1
    except EOFError:
        sys.stderr.write(f"\n{NAME} {words[0]}: the input ended before everything was said\n")
        return 1
    return 0


def page() -> str:
    """What `bin/manage --help` says."""
    lines = [
        f"{NAME} COMMAND …, beside a running Citadel:",
        "",
        *(f"  {name:16}{about}" for name, about in COMMANDS.items()),
        "",
        f"{NAME} COMMAND --help tells more of one.",
        f"Django's own are there too, such as createsuperuser and migrate: {NAME} help --commands names all.",
    ]
    return "\n".join(lines)


def _in_our_words(problem: Exception) -> str:
    """Where there is no database Django names its own settings, which are not what is missing."""
    from citadel import config, presence
    from citadel.database import place
    from citadel.sections import ConfigError

    try:
        database = presence.settings(os.environ).database_url
    except ConfigError as error:
        return str(error)
    if not database:
        return presence.absence(config.home_folder())
    if not isinstance(problem, OperationalError):
        return str(problem)
    reason = str(problem).partition("\n")[0].rpartition(": ")[2]
    return f"The database at {place(database)} can't be used: {reason}. bin/manage doctor looks at all that is needed."
