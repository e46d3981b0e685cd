"""The command line beside a running Citadel, as its operator has it."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

from tests.instance import ROOT

LIMIT = 60.0


def manage(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs `manage.py WORDS` against the Citadel in `home`; whoever calls looks at the exit code."""
    return run(home, sys.executable, str(ROOT / "manage.py"), *words)


def call(*words: str) -> str:
    """What the same command says when it runs in the tests' own process, on the run's Citadel; CommandError."""
    from django.core.management import call_command

    said = StringIO()
    call_command(*words, stdout=said)
    return said.getvalue()


def run(home: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program that knows nothing but the home."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CITADEL_", "DJANGO_")) and name not in ("DATABASE_URL", "REDIS_URL", "REDIS_CACHE_URL")
    }
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "CITADEL_HOME": str(home)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # without a terminal, of which passwords would be asked
        timeout=LIMIT,
        check=False,
    )
