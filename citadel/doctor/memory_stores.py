"""The two Redis: the one for state must keep everything, the one for the cache must let go."""

from collections.abc import Iterator, Mapping
from typing import Any

import redis

from citadel.doctor.finding import Finding, broken, doubtful, well
from citadel.doctor.patient import Asleep, Patient

START = "is it running? Start Citadel with bin/run, or Redis itself, and look whether {} leads to it"


def state(patient: Patient) -> Iterator[Finding]:
    """Limits, places and the fleet's board: losing a part of them is worse than an error."""
    told = _ask(patient, "REDIS_URL", patient.config.redis_url)
    if isinstance(told, Finding):
        yield told
        return
    yield well(f"Redis {told['redis_version']} answers")
    policy = told.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield broken(
            f"its maxmemory-policy is {policy}: it may throw away limits and places",
            "CONFIG SET maxmemory-policy noeviction, and the same in its redis.conf; the cache is another instance",
        )
    if not int(told.get("aof_enabled", 0)):
        yield doubtful(
            "it keeps no append-only file: a restart loses what came after its last snapshot",
            "CONFIG SET appendonly yes, and the same in its redis.conf",
        )
    if told.get("aof_last_write_status", "ok") != "ok" or told.get("rdb_last_bgsave_status", "ok") != "ok":
        yield broken("it could not write to its disk", "look at its log and at the space on its disk")
    yield from _full(told)


def cache(patient: Patient) -> Iterator[Finding]:
    """Answers: the least recently used make room."""
    if not patient.config.redis_cache_url:
        if patient.asleep:
            raise Asleep
        yield doubtful(
            "none of its own is configured: answers go into the one for state, where nothing makes room",
            "set REDIS_CACHE_URL to another instance",
        )
        return
    told = _ask(patient, "REDIS_CACHE_URL", patient.config.redis_cache_url)
    if isinstance(told, Finding):
        yield told
        return
    yield well(f"Redis {told['redis_version']} answers")
    policy, limit = told.get("maxmemory_policy", "noeviction"), int(told.get("maxmemory", 0))
    if policy == "noeviction":
        yield broken("its maxmemory-policy is noeviction: once full it takes nothing", "use allkeys-lru")
    if not limit:
        yield doubtful("it has no maxmemory: it grows until its machine is full", "CONFIG SET maxmemory 512mb")


def _ask(patient: Patient, variable: str, url: str | None) -> Mapping[str, Any] | Finding:
    """What it says of itself, or what is wrong with it; Asleep."""
    if not url:
        raise Asleep
    try:
        told: Mapping[str, Any] = patient.redis(url).info()
    except (redis.RedisError, OSError) as error:
        return broken(f"it does not answer: {error}", START.format(variable))
    return told


def _full(told: Mapping[str, Any]) -> Iterator[Finding]:
    used, limit = int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))
    if limit and used > limit * 0.8:
        yield doubtful(f"{used * 100 // limit} % of its maxmemory is used", "give it more: CONFIG SET maxmemory")
