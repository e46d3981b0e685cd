"""The doctor's rounds: every check in turn, one line a finding. What is down is what it is there to tell."""

import os
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TextIO

import psycopg
import redis

from citadel.doctor import database, machine, memory_stores, processes, servers, settings
from citadel.doctor.finding import Finding, doubtful
from citadel.doctor.patient import Asleep, Patient, Unavailable

Check = Callable[[Patient], Iterator[Finding]]
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "configuration": settings.readable,
        "permissions": machine.permissions,
        "disk": machine.disk,
        "processes": processes.alive,
        "web": processes.web,
        "database": database.answers,
        "database connections": database.room,
        "migrations": database.tables,
        "redis for state": memory_stores.state,
        "redis for the cache": memory_stores.cache,
        "clock": machine.clock,
        "servers": servers.answer,
    }
)
"""By subject, in the order in which they are made."""


def examine(patient: Patient) -> Iterator[tuple[str, Finding]]:
    """Subject and finding of every check, as they are made."""
    for subject, check in CHECKS.items():
        try:
            for finding in check(patient):
                yield subject, finding
        except Asleep:
            continue
        except Unavailable as reason:
            yield subject, doubtful(f"not checked: {reason}", "mend that first")
        except (psycopg.Error, redis.RedisError, OSError) as error:  # it went away between two questions
            yield subject, doubtful(f"not checked to the end: {' '.join(str(error).split())}", "ask once more")


def main(words: Sequence[str], out: TextIO) -> int:
    """Tells all findings; gives the exit code, 1 when something is broken. WORDS are the command line's."""
    about = "Looks at everything that Citadel stands on and says how to mend what it finds; 1 when something is broken."
    ArgumentParser("bin/manage doctor", description=about).parse_args(words)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "citadel.settings")
    levels: Counter[str] = Counter()
    with Patient(os.environ) as patient:
        for subject, (level, what, mend) in examine(patient):
            levels[level] += 1
            out.write(f"{level:8} {subject}: {what}\n")
            if mend:
                out.write(f"{'':8} → {mend}\n")
            out.flush()
    out.write(f"\n{levels['ok']} ok, {levels['warning']} to look at, {levels['broken']} broken\n")
    return 1 if levels["broken"] else 0
