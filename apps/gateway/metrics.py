"""What is counted, for Prometheus. Low in cardinality: no key, no team, no request id is a label."""

import os
from collections import defaultdict
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = Counter("http_requests", "Requests answered.", ["endpoint", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time to the end of the answer.", ["endpoint"], buckets=BUCKETS)
FIRST_TOKEN = Histogram("citadel_time_to_first_token_seconds", "Of streams.", ["model"], buckets=BUCKETS)
UPSTREAM = Counter("ollama_requests", "Requests to servers, whatever their kind.", ["server", "model", "outcome"])
CACHE_HITS = Counter("cache_hits", "Answers out of the cache.", ["endpoint"])
CACHE_MISSES = Counter("cache_misses", "Cacheable requests that a server answered.", ["endpoint"])
TOKENS = Counter("response_tokens_generated", "Tokens that servers generated.", ["model"])
IN_FLIGHT = Gauge("http_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum")
UNSHIPPED = Gauge("citadel_audit_records_pending", "Records not yet in the database.", multiprocess_mode="livesum")


_Labels = tuple[str, ...]
_tally: dict[tuple[Counter, _Labels], float] = defaultdict(float)
"""Counted since the last `flush`: adding here costs a tenth of adding to a counter that processes share."""


@cache
def _duration(endpoint: str) -> Histogram:
    return DURATION.labels(endpoint)


def request_ended(endpoint: str, status: int, seconds: float, *, cache: str, model: str, tokens: int) -> None:
    """Counts one answered request."""
    _tally[REQUESTS, (endpoint, str(status))] += 1
    _duration(endpoint).observe(seconds)
    if cache != "bypass":
        _tally[CACHE_MISSES if cache == "miss" else CACHE_HITS, (endpoint,)] += 1
    if tokens:
        _tally[TOKENS, (model,)] += tokens


def attempt_ended(server: str, model: str, outcome: str) -> None:
    """Counts one request to a server."""
    _tally[UPSTREAM, (server, model, outcome.partition(":")[0])] += 1


def flush(*, in_flight: int, unshipped: int) -> None:
    """Adds what was counted to the shared counters, and says how things stand in this worker."""
    for (counter, labels), amount in _tally.items():
        counter.labels(*labels).inc(amount)
    _tally.clear()
    IN_FLIGHT.set(in_flight)
    UNSHIPPED.set(unshipped)


def exposition() -> tuple[bytes, str]:
    """The metrics of all workers in Prometheus's text format, and its content type."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST
    return generate_latest(), CONTENT_TYPE_LATEST
