"""What the records of a period come to: requests, errors, tokens, times, cache, by model, server, team and moment.

One pass over the newest records of the period, which the index on their time finds.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from citadel.database import Pool
from citadel.errors import Unavailable

MOST_RECORDS = 1_000_000
"""Looked at; about three seconds. Of a period with more the oldest are left out, and the answer says so."""
MOST_GROUPS = 100
"""Of one kind, those with the most requests."""
WITHIN = 15.0
STEPS = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 180, 720, 1440))
MOST_STEPS = 60
FILTERS = ("team", "model", "server")

_QUERY = """
SELECT model, server, team, outcome, moment, GROUPING(model, server, team, outcome, moment), count(*),
    count(*) FILTER (WHERE failed), count(*) FILTER (WHERE outcome = 'client_disconnected'),
    coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY total_ms),
    percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY first_byte_ms),
    count(*) FILTER (WHERE cache = 'hit'), count(*) FILTER (WHERE cache = 'coalesced'),
    count(*) FILTER (WHERE cache = 'miss'), count(*) FILTER (WHERE cache = 'bypass')
FROM (
    SELECT *, date_bin(%(step)s, at, %(since)s) AS moment,
        outcome <> 'client_disconnected' AND (status >= 400 OR outcome <> 'ok') AS failed
    FROM audit_record WHERE at >= %(since)s AND at < %(until)s{filters} ORDER BY at DESC LIMIT %(most)s
) AS looked_at
GROUP BY GROUPING SETS ((), (model), (server), (team), (outcome), (moment))
"""
# GROUPING has a bit for each of its columns, set where rows are not grouped by it.
_ALL, _BY_MODEL, _BY_SERVER, _BY_TEAM, _BY_OUTCOME, _BY_MOMENT = 31, 15, 23, 27, 29, 30


class Percentiles(msgspec.Struct, frozen=True):
    """Half, 95 and 99 of a hundred took no longer; in milliseconds."""

    p50: float
    p95: float
    p99: float


class CacheUse(msgspec.Struct, frozen=True):
    """How requests met the cache. `hit_rate` is of those that it could have answered."""

    hit: int
    coalesced: int
    miss: int
    bypass: int
    hit_rate: float | None


class Figures(msgspec.Struct, frozen=True):
    """What some requests come to. `left` are those whose clients left, which are no errors."""

    requests: int
    errors: int
    left: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    latency_ms: Percentiles | None
    first_byte_ms: Percentiles | None
    cache: CacheUse


class Moment(msgspec.Struct, frozen=True):
    """A step of the period."""

    at: datetime
    requests: int
    errors: int
    total_tokens: int


class Statistics(msgspec.Struct, frozen=True):
    """A period. Where it is not `complete` it had too many requests: the oldest are left out."""

    since: datetime
    until: datetime
    complete: bool
    total: Figures
    by_model: dict[str, Figures]
    by_server: dict[str, Figures]
    by_team: dict[str, Figures]
    outcomes: dict[str, int]
    timeline: list[Moment]


async def statistics(pool: Pool, since: datetime, until: datetime, only: Mapping[str, str]) -> Statistics:
    """The figures of a period, of all requests or of those that have the team, model or server of `only`.

    Unavailable when it takes too long, or there is no database.
    """
    filters = sql.SQL("").join(
        sql.SQL(" AND {} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in FILTERS if name in only
    )
    query = sql.SQL(_QUERY).format(filters=filters)
    values = {"since": since, "until": until, "step": step_of(until - since), "most": MOST_RECORDS, **only}
    try:
        async with pool.connection(timeout=2) as connection, connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {int(WITHIN * 1000)}")
            rows = await (await connection.execute(query, values)).fetchall()
    except psycopg.errors.QueryCanceled:
        raise Unavailable("The period has too many requests for now: ask for a shorter one.", retry_after=5) from None
    except (psycopg.Error, OSError):
        raise Unavailable("The records can't be read at the moment.", retry_after=5) from None
    return told(since, until, rows)


def step_of(period: timedelta) -> timedelta:
    """The smallest step by which a period has no more than `MOST_STEPS`."""
    return next((step for step in STEPS if period <= step * MOST_STEPS), STEPS[-1])


def told(since: datetime, until: datetime, rows: Sequence[Sequence[Any]]) -> Statistics:
    """The rows of the query, put in their places."""
    groups: dict[int, list[Sequence[Any]]] = {}
    for row in sorted(rows, key=lambda row: -row[6]):
        groups.setdefault(row[5], []).append(row)
    total = _figures(groups[_ALL][0])
    moments = sorted(groups.get(_BY_MOMENT, []), key=lambda row: row[4])
    return Statistics(
        since,
        until,
        total.requests < MOST_RECORDS,
        total,
        {row[0]: _figures(row) for row in groups.get(_BY_MODEL, [])[:MOST_GROUPS]},
        {row[1]: _figures(row) for row in groups.get(_BY_SERVER, [])[:MOST_GROUPS] if row[1]},
        {row[2]: _figures(row) for row in groups.get(_BY_TEAM, [])[:MOST_GROUPS]},
        {row[3]: row[6] for row in groups.get(_BY_OUTCOME, [])[:MOST_GROUPS]},
        [Moment(row[4], row[6], row[7], int(row[9] + row[10])) for row in moments],
    )


def _figures(row: Sequence[Any]) -> Figures:
    requests, errors, left, prompt, completion, total_ms, first_byte_ms, *cache = row[6:]
    return Figures(
        requests,
        errors,
        left,
        int(prompt),
        int(completion),
        int(prompt + completion),
        _percentiles(total_ms),
        _percentiles(first_byte_ms),
        _cache(*cache),
    )


def _percentiles(values: Sequence[float] | None) -> Percentiles | None:
    return Percentiles(*(round(value, 3) for value in values)) if values and None not in values else None


def _cache(hit: int, coalesced: int, miss: int, bypass: int) -> CacheUse:
    asked = hit + coalesced + miss
    return CacheUse(hit, coalesced, miss, bypass, round((hit + coalesced) / asked, 4) if asked else None)
