"""How the requests of the last minutes went, by the server that they went to."""

from citadel.database import Pool

_BY_SERVER = """
SELECT attempt ->> 'server', count(*), count(*) FILTER (WHERE NOT attempt ->> 'outcome' = ANY (%(no_failures)s)),
    avg((attempt ->> 'ms')::float) FILTER (WHERE attempt ->> 'outcome' = 'ok')
FROM audit_record, jsonb_array_elements(attempts) AS attempt
WHERE at > now() - make_interval(secs => %(seconds)s)
GROUP BY attempt ->> 'server'
"""
NO_FAILURES = [
    "ok",
    "refused_request",
    "cancelled",
    "model_not_found",
    "not_found",
    "rate_limited",
    "too_many_open_files",
    "too_large",
    "moved",
    "loop_detected",
    "no_server_there",
    "interrupted: stream_time_limit",
]
"""What becomes of attempts without the server's fault."""


async def by_server(pool: Pool, seconds: float) -> dict[str, tuple[int, int, float | None]]:
    """Of each server: the attempts on it, those of them that failed, and the average milliseconds of the good ones.

    Raises psycopg.Error.
    """
    async with pool.connection() as connection:
        rows = await (await connection.execute(_BY_SERVER, {"seconds": seconds, "no_failures": NO_FAILURES})).fetchall()
    return {str(server): (int(requests), int(failed), average) for server, requests, failed, average in rows}
