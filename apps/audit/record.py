"""The only way in: a worker hands over what happened, and it goes to PostgreSQL in batches by COPY.

Until a batch is written its records stand in memory. When the database is away they wait there, up to `CAPACITY`;
a worker that can keep no more refuses requests instead of forgetting them.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
import psycopg
import structlog

from citadel.database import Pool
from citadel.errors import Unavailable

log = structlog.get_logger("citadel.audit")

CAPACITY = 100_000
"""Records that one worker keeps in memory at most, about 100 MB."""
BATCH = 5000
"""Records written in one go."""
MOST = 2**31 - 1
BILLION = 10**9
INTERVAL = 0.2
RETRY = 1.0

COLUMNS = (
    "request_id, at, team, key_id, door, model, server, attempts, status, outcome, stream, cache, prompt_tokens, "
    "completion_tokens, request_bytes, answer_bytes, first_byte_ms, total_ms, routing, cost"
)


@dataclass(slots=True)
class Entry:
    """A record in the making. Times in milliseconds; `at` in seconds since the epoch."""

    request_id: str
    at: float
    team: str
    key_id: str
    door: str
    model: str = ""
    server: str = ""
    attempts: list[dict[str, str | int | float]] = field(default_factory=list)
    status: int = 0
    outcome: str = ""
    stream: bool = False
    cache: str = "bypass"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0
    cost: int = 0
    """In billionths of the money in which prices are."""
    first_byte_ms: float | None = None
    total_ms: float = 0.0
    routing: dict[str, Any] | None = None
    """Why this server; None where there was no choice."""

    def row(self) -> bytes:
        """The record as a line of COPY's text format (PostgreSQL, "COPY", File Formats), within the columns' bounds."""
        attempts = _text(_json(self.attempts))
        routing = r"\N" if self.routing is None else _text(_json(self.routing))
        first_byte_ms = r"\N" if self.first_byte_ms is None else f"{self.first_byte_ms:.3f}"
        return (
            f"{self.request_id}\t{datetime.fromtimestamp(self.at, UTC)}\t{_name(self.team)}\t{self.key_id}\t"
            f"{self.door}\t{_name(self.model)}\t{_name(self.server)}\t{attempts}\t{self.status}\t"
            f"{_name(self.outcome[:48])}\t{self.stream}\t{self.cache}\t{_count(self.prompt_tokens)}\t"
            f"{_count(self.completion_tokens)}\t{self.request_bytes}\t{self.answer_bytes}\t{first_byte_ms}\t"
            f"{self.total_ms:.3f}\t{routing}\t{_money(self.cost) if self.cost else 0}\n"
        ).encode(errors="replace")  # of a header that is no UTF-8 something must be left


def _text(value: str) -> str:
    if value.isprintable() and "\\" not in value:
        return value
    value = value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return value.replace("\x00", "")  # PostgreSQL's text can't hold it


def _count(tokens: int) -> int:
    """As a server told it, within what the column holds."""
    return tokens if 0 <= tokens <= MOST else max(0, min(tokens, MOST))


def _money(billionths: int) -> str:
    return f"{billionths // BILLION}.{billionths % BILLION:09}"


def _json(value: object) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=False)  # with what it could not encode, for `row` to replace


_name = lru_cache(maxsize=4096)(_text)  # the names of teams, models and servers come again and again
_encode = msgspec.json.Encoder().encode


class Recorder:
    """Takes entries without waiting and writes them behind the requests' back.

    Rows are made a turn of the event loop after their entries are taken: soon, so that no request has to wait while
    hundreds are made for a batch, but not before a cancelled attempt has told its end.
    """

    def __init__(self, pool: Pool):
        self._pool = pool
        self._taken: list[Entry] = []
        self._waiting: list[bytes] = []
        self._writing = 0
        self._turn = asyncio.Lock()
        """Held while a batch is written: one that is cut off may be in the database or not."""
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Entries taken and not yet in the database."""
        return len(self._taken) + len(self._waiting) + self._writing

    def check_room(self) -> None:
        """Unavailable when another request could not be recorded."""
        if len(self._taken) + len(self._waiting) >= CAPACITY:
            raise Unavailable("Requests can't be recorded at the moment.", code="audit_unavailable", retry_after=5)

    def take(self, entry: Entry) -> None:
        """Keeps one finished entry."""
        if not self._taken:
            asyncio.get_running_loop().call_soon(self._make_rows)
        self._taken.append(entry)

    def start(self) -> None:
        """Begins to write."""
        self._task = asyncio.create_task(self._write_on(), name="audit recorder")

    async def stop(self, within: float) -> None:
        """Writes what is left, for at most `within` seconds; says so when something could not be written."""
        try:
            async with asyncio.timeout(within), self._turn:
                self._make_rows()
                while self._waiting:
                    await self._write_batch()
        except (TimeoutError, psycopg.Error):
            log.error("audit_records_lost", records=self.pending)
        finally:
            if self._task:
                self._task.cancel()

    def _make_rows(self) -> None:
        taken, self._taken = self._taken, []
        for entry in taken:
            try:
                self._waiting.append(entry.row())
            except (ValueError, TypeError) as error:  # one that can't be written must not hold up all others
                log.error("audit_record_refused", request_id=entry.request_id, reason=str(error))

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                while self._waiting:
                    async with self._turn:
                        await self._write_batch()
            except (psycopg.Error, OSError) as error:
                log.warning("audit_waits_for_database", records=self.pending, reason=type(error).__name__)
                await asyncio.sleep(RETRY)

    async def _write_batch(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        self._writing = len(batch)
        try:
            await self._write(batch)
        except BaseException:
            self._waiting = batch + self._waiting
            raise
        finally:
            self._writing = 0

    async def _write(self, batch: Sequence[bytes]) -> None:
        """All of them, but those that the database will never take: one bad record must not hold up all others."""
        try:
            await self._copy(batch)
        except psycopg.DataError as error:
            if len(batch) == 1:
                log.error("audit_record_refused", record=batch[0].decode(), reason=str(error))
                return
            await self._write(batch[: len(batch) // 2])
            await self._write(batch[len(batch) // 2 :])

    async def _copy(self, batch: Sequence[bytes]) -> None:
        async with (
            self._pool.connection() as connection,
            connection.cursor() as cursor,
            cursor.copy(f"COPY audit_record ({COLUMNS}) FROM STDIN") as copy,
        ):
            await copy.write(b"".join(batch))
