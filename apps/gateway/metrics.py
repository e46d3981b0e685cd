"""What is counted, for Prometheus. Low in cardinality: no key, no team, no request id is a label.

Counters that processes share cost microseconds each time. So a worker tallies in its own memory, and `flush` adds that
to the shared ones twice a second.
"""

import contextlib
import os
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from apps.audit.record import Entry
from apps.gateway.inference.doors import CHAT, COMPLETIONS, EMBEDDINGS

BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = Counter("http_requests", "Requests answered.", ["endpoint", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time to the end of the answer.", ["endpoint"], buckets=BUCKETS)
FIRST_TOKEN = Histogram("citadel_time_to_first_token_seconds", "Of streams.", ["model"], buckets=BUCKETS)
UPSTREAM = Counter("ollama_requests", "Requests to servers, whatever their kind.", ["server", "model", "outcome"])
CACHE_HITS = Counter("cache_hits", "Answers out of the cache.", ["endpoint"])
CACHE_MISSES = Counter("cache_misses", "Cacheable requests that a server answered.", ["endpoint"])
TOKENS = Counter("response_tokens_generated", "Tokens that servers generated.", ["model"])
IN_FLIGHT = Gauge("http_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum")
CONNECTIONS = Gauge("citadel_connections", "Open connections of clients.", multiprocess_mode="livesum")
CONNECTIONS_REFUSED = Counter("citadel_connections_refused", "Connections that were too many.")
CONSOLE_SOCKETS = Gauge("citadel_console_sockets", "Open WebSockets of the console.", multiprocess_mode="livesum")
UNSHIPPED = Gauge("citadel_audit_records_pending", "Records not yet in the database.", multiprocess_mode="livesum")

_ENDPOINTS = {door.path: door.name for door in (CHAT, COMPLETIONS, EMBEDDINGS)} | {"/v1/models": "models"}
_Labels = tuple[str, ...]


class _Observed:
    """What one histogram was shown since the last flush."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def flush_into(self, histogram: Histogram) -> None:
        """The library has no way of its own to add many observations at once: this is what its `observe` does."""
        histogram._sum.inc(self.sum)
        for bucket, count in zip(histogram._buckets, self.counts, strict=True):
            if count:
                bucket.inc(count)


_counted: Tally[tuple[Counter, _Labels]] = Tally()
_observed: defaultdict[tuple[Histogram, str], _Observed] = defaultdict(_Observed)


def answered(path: str, status: int) -> None:
    """Counts a request to `path`, whatever became of it."""
    _counted[REQUESTS, (_ENDPOINTS.get(path, "other"), str(status))] += 1


def request_ended(record: Entry, seconds: float) -> None:
    """Counts what one request to a model took: so many seconds, and tokens."""
    _observed[DURATION, record.door].add(seconds)
    if record.stream and record.first_byte_ms is not None:
        _observed[FIRST_TOKEN, record.model].add(record.first_byte_ms / 1000)
    if record.cache != "bypass":
        _counted[CACHE_MISSES if record.cache == "miss" else CACHE_HITS, (record.door,)] += 1
    if record.completion_tokens:
        _counted[TOKENS, (record.model,)] += record.completion_tokens


def attempt_ended(server: str, model: str, outcome: str) -> None:
    """Counts one request to a server."""
    _counted[UPSTREAM, (server, model, outcome.partition(":")[0])] += 1


def connected(count: int, refused: int) -> None:
    """Says how many connections this worker has, and counts those that it has refused."""
    CONNECTIONS.set(count)
    if refused:
        CONNECTIONS_REFUSED.inc(refused)


def flush(*, in_flight: int, unshipped: int) -> None:
    """Adds what was counted to the shared counters, and says how things stand in this worker."""
    for (counter, labels), amount in _counted.items():
        counter.labels(*labels).inc(amount)
    for (histogram, label), observed in _observed.items():
        observed.flush_into(histogram.labels(label))
    _counted.clear()
    _observed.clear()
    IN_FLIGHT.set(in_flight)
    UNSHIPPED.set(unshipped)


def forget_dead_workers() -> None:
    """Takes the gauges of workers out that were killed: what they were doing is being done no more."""
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.devnull))
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*_*.db")}:
        if not _lives(pid):
            with contextlib.suppress(FileNotFoundError):  # another worker, which starts too, was faster
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]  # they left it untyped


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def exposition() -> tuple[bytes, str]:
    """The metrics of all workers in Prometheus's text format, and its content type."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # they left it untyped
        return generate_latest(registry), CONTENT_TYPE_LATEST
    return generate_latest(), CONTENT_TYPE_LATEST
