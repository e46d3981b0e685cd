"""`python -m citadel.embedded`: Citadel with everything it needs, until Ctrl-C. `bin/run` calls it."""

import signal

if __name__ == "__main__":  # until there is something to stop, Ctrl-C simply ends it, while modules load too
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from citadel import config
from citadel.embedded import launch
from citadel.embedded.home import Home, StartError
from citadel.sections import ConfigError


def main() -> int:
    """Gives the exit code: 0 after an orderly stop, 1 when Citadel could not start."""
    os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal has no characters for must not stop us
            stream.reconfigure(errors="backslashreplace")
    try:
        home = Home(config.home_folder())
        home.prepare()
        with home.occupied():
            # What a killed predecessor left would be taken for given.
            home.services.unlink(missing_ok=True)
            home.started_with.unlink(missing_ok=True)
            home.stopping.unlink(missing_ok=True)
            config.make_secret(home.path)
            settings = config.load()
            _ = settings.secret  # what is wrong with it is told before anything starts
            os.environ["CITADEL_HOME"] = str(home.path)
            os.chdir(config.ROOT)
            say = narrator(home.log("supervisor"))
            for path in config.unread(home.path):
                say(f"Not read: {path}. Settings stand in {home.path / config.YAML_FILES[0]}")
            asyncio.run(launch.serve(home, settings, say))
    except (StartError, ConfigError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, say
        print(f"\nCitadel can't go on: {error}\n", file=sys.stderr)
        return 1
    return 0


def narrator(log: Path) -> Callable[[str], None]:
    """Gives what tells a line to the person at the terminal, with the seconds since now, and to LOG, with the time."""
    begin = time.monotonic()

    def say(line: str) -> None:
        # A full disk or a terminal that is gone is no reason to leave the children alone.
        with suppress(OSError), log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
        with suppress(OSError):
            print(f"{time.monotonic() - begin:6.1f} s  {line}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
