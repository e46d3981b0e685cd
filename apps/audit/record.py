"""The only way in: a worker hands over what happened, and it goes to PostgreSQL in batches by COPY.

Until a batch is written its records stand in memory. When the database is away they wait there, up to `CAPACITY`;
a worker that can keep no more refuses requests instead of forgetting them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import psycopg
import structlog

from citadel.database import Pool
from citadel.errors import Unavailable

log = structlog.get_logger("citadel.audit")

CAPACITY = 100_000
"""Records that one worker keeps in memory at most, about 100 MB."""
BATCH = 500
"""Records written in one go: few enough that making their rows holds the event loop for a few milliseconds only."""
INTERVAL = 0.2
RETRY = 1.0

COLUMNS = (
    "request_id, at, team, key_id, door, model, server, attempts, status, outcome, stream, cache, prompt_tokens, "
    "completion_tokens, request_bytes, answer_bytes, first_byte_ms, total_ms"
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
    first_byte_ms: float | None = None
    total_ms: float = 0.0

    def row(self) -> bytes:
        """The record as a line of COPY's text format (PostgreSQL, "COPY", File Formats)."""
        fields = (
            self.request_id,
            datetime.fromtimestamp(self.at, UTC).isoformat(),
            _text(self.team),
            self.key_id,
            self.door,
            _text(self.model),
            _text(self.server),
            _text(msgspec.json.encode(self.attempts).decode()) if self.attempts else "[]",
            str(self.status),
            self.outcome,
            "t" if self.stream else "f",
            self.cache,
            str(self.prompt_tokens),
            str(self.completion_tokens),
            str(self.request_bytes),
            str(self.answer_bytes),
            r"\N" if self.first_byte_ms is None else f"{self.first_byte_ms:.3f}",
            f"{self.total_ms:.3f}",
        )
        return ("\t".join(fields) + "\n").encode()


def _text(value: str) -> str:
    if value.isalnum():
        return value
    value = value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return value.replace("\x00", "")  # PostgreSQL's text can't hold it


class Recorder:
    """Takes entries without waiting and writes them behind the requests' back."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._waiting: list[Entry] = []
        self._writing = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Entries taken and not yet in the database."""
        return len(self._waiting) + self._writing

    def check_room(self) -> None:
        """Unavailable when another request could not be recorded."""
        if len(self._waiting) >= CAPACITY:
            raise Unavailable("Requests can't be recorded at the moment.", code="audit_unavailable", retry_after=5)

    def take(self, entry: Entry) -> None:
        """Keeps one finished entry."""
        self._waiting.append(entry)

    def start(self) -> None:
        """Begins to write."""
        self._task = asyncio.create_task(self._write_on(), name="audit recorder")

    async def stop(self, within: float) -> None:
        """Writes what is left, for at most `within` seconds; says so when something could not be written."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(within):
                while self._waiting:
                    await self._write_batch()
        except (TimeoutError, psycopg.Error):
            log.error("audit_records_lost", records=self.pending)

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                while self._waiting:
                    await self._write_batch()
            except (psycopg.Error, OSError) as error:
                log.warning("audit_waits_for_database", records=self.pending, reason=type(error).__name__)
                await asyncio.sleep(RETRY)

    async def _write_batch(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        self._writing = len(batch)
        try:
            await self._copy(batch)
        except BaseException:
            self._waiting = batch + self._waiting
            raise
        finally:
            self._writing = 0

    async def _copy(self, batch: Sequence[Entry]) -> None:
        async with (
            self._pool.connection() as connection,
            connection.cursor() as cursor,
            cursor.copy(f"COPY audit_record ({COLUMNS}) FROM STDIN") as copy,
        ):
            await copy.write(b"".join(entry.row() for entry in batch))
