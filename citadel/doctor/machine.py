"""The machine: its clock, its disk, and who may read what must not be read."""

import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import redis

from citadel.doctor.finding import Finding, broken, doubtful, well
from citadel.doctor.patient import Asleep, Patient, Unavailable

CLOCK_DOUBTFUL, CLOCK_BROKEN = 2.0, 60.0
"""Seconds by which clocks may differ."""
SPACE_DOUBTFUL, SPACE_BROKEN = 2 * 1024**3, 256 * 1024**2
"""Free bytes: records and logs need room."""


def clock(patient: Patient) -> Iterator[Finding]:
    """Against those of PostgreSQL and Redis. Limits and our tokens go by Redis's, signatures and logs by its own."""
    for name, ask in (("PostgreSQL", _postgres_time), ("Redis", _redis_time)):
        try:
            yield agree(name, _offset(ask, patient))
        except Asleep:
            continue
        except (Unavailable, psycopg.Error, redis.RedisError, OSError):
            yield doubtful(f"not compared with {name}'s, which is away", "mend that first")


def agree(name: str, seconds: float) -> Finding:
    """What it means that NAME's clock is so many seconds ahead of ours."""
    said = f"{name}'s is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    mend = "let both keep time by NTP (timedatectl set-ntp true)"
    if abs(seconds) > CLOCK_BROKEN:
        return broken(said, mend)
    return doubtful(said, mend) if abs(seconds) > CLOCK_DOUBTFUL else well(f"agrees with {name}'s")


def _offset(ask: Callable[[Patient], float], patient: Patient) -> float:
    """As if it had been told in the middle of the question's way there and back."""
    ask(patient)  # the first one pays for the connection
    before = time.time()
    told = ask(patient)
    return told - (before + time.time()) / 2


def _postgres_time(patient: Patient) -> float:
    row = patient.database.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    return float(row[0]) if row else 0.0


def _redis_time(patient: Patient) -> float:
    seconds, microseconds = patient.state.time()
    return float(seconds) + float(microseconds) / 1e6


def disk(patient: Patient) -> Iterator[Finding]:
    """Free space where Citadel writes."""
    if not patient.home.exists():
        yield doubtful(
            f"{patient.home} is not there yet", "bin/run makes it; or does CITADEL_HOME name another folder?"
        )
        return
    yield space(patient.home, shutil.disk_usage(patient.home).free)


def space(place: Path, free: int) -> Finding:
    """What so many free bytes mean."""
    said = f"{free / 1024**3:.1f} GB are free at {place}"
    mend = f"make room there, or move it: what takes most says: du -xh --max-depth=2 {place} | sort -h | tail"
    if free < SPACE_BROKEN:
        return broken(said, mend)
    return doubtful(said, mend) if free < SPACE_DOUBTFUL else well(said)


def permissions(patient: Patient) -> Iterator[Finding]:
    """Secrets, addresses with passwords and the folder of all of them are for their owner alone."""
    home = patient.home
    private = [home / "first-run.json", home / "run" / "services.json", home / "postgres" / "password"]
    found = [path for path in [*sorted((home / "config" / "secrets").glob("*")), *private] if path.is_file()]
    open_files = [path for path in found if _others_may(path)]
    for path in open_files:
        yield broken(f"others than its owner can read {path}", f"chmod 600 {path}, and change what stands in it")
    if home.exists() and _others_may(home):
        yield doubtful(f"others than its owner can look into {home}", f"chmod 700 {home}")
    elif not open_files:
        yield well(f"{len(found)} files of secrets are their owner's alone")


def _others_may(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
