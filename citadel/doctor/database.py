"""PostgreSQL: does it answer, is it new enough, has it room for us, are its tables ours."""

from collections.abc import Iterator

from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader

from citadel.database import THREADS
from citadel.doctor.finding import Finding, broken, doubtful, well
from citadel.doctor.patient import Asleep, Patient, Unavailable
from citadel.sections import Config

OLDEST = 14
"""Version of PostgreSQL that Django supports."""
BESIDE_POOL = 3 + THREADS
"""Connections of a web worker beside its pool: the two that listen, the console's and those of slow API calls."""
BACKGROUND = 8
"""Connections of all processes that are no web workers: worker, prober, beat, shipper, commands."""
START = "start Citadel with bin/run, or PostgreSQL itself; does DATABASE_URL=postgresql://… lead to it?"


def answers(patient: Patient) -> Iterator[Finding]:
    """Says itself why it doesn't."""
    _ = patient.config  # which is another check's, if it can't be used
    try:
        version = patient.database.info.server_version // 10_000
    except Asleep:
        raise
    except Unavailable as away:
        yield broken(away.details, START)
        return
    if version < OLDEST:
        yield broken(f"PostgreSQL {version} is too old", f"move to version {OLDEST} or newer")
    else:
        yield well(f"PostgreSQL {version} answers")


def room(patient: Patient) -> Iterator[Finding]:
    """What all processes of this machine may hold, against what PostgreSQL gives."""
    asked = "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
    row = patient.database.execute(asked).fetchone() or (0, 0)
    yield fits(needed(patient.config), row[0] - row[1])


def needed(config: Config) -> int:
    """Connections that the processes of one machine may hold at the same time."""
    return config.server.workers * (config.pools.database + BESIDE_POOL) + BACKGROUND


def fits(wanted: int, given: int) -> Finding:
    """Whether so many connections are to be had."""
    said = f"up to {wanted} connections may be wanted by this machine, {given} are to be had"
    mend = "raise max_connections of PostgreSQL, or lower server.workers or pools.database"
    if wanted > given:
        return broken(said, mend)
    return doubtful(said, f"more than half: with a second machine {mend}") if wanted * 2 > given else well(said)


def tables(patient: Patient) -> Iterator[Finding]:
    """Whether the tables are those of this version."""
    patient.set_up_django()
    try:
        loader = MigrationLoader(connection)
    except DatabaseError as error:
        raise Unavailable(" ".join(str(error).split())) from None
    finally:
        connection.close()
    ours, applied = set(loader.graph.nodes), set(loader.applied_migrations)
    if missing := _names(ours - applied):
        yield broken(f"not applied: {missing}", "bin/manage migrate (bin/run does it at each start)")
    if strange := _names({one for one in applied - ours if one[0] in loader.migrated_apps}):
        yield doubtful(f"of another version: {strange}", "run the newest version that has been here")
    if not missing and not strange:
        yield well("all are applied")


def _names(migrations: set[tuple[str, str]]) -> str:
    return ", ".join(".".join(one) for one in sorted(migrations))
