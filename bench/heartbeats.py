"""What heartbeats cost a web worker: those of 1,000 servers, each every 30 seconds, one after the other.

Beside it what as many requests cost the bare relay: whoever does little 33 times a second does it with cold caches,
and what that takes differs between machines by more than the work does.
"""

import http.client
import json
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import psycopg

from bench.citadel import Citadel
from bench.targets import Target
from bench.usage import readings

SERVERS = 1_000
INTERVAL = 30.0
SETTLING = 3.0
"""Seconds after the servers have come in and before anything is measured."""


class Heartbeats(msgspec.Struct, frozen=True):
    """Hundredths of one core: what a worker takes without them, what they cost it, and what as many requests cost the
    relay, where it is there. ``rate`` is how many there are in a second.
    """

    rate: float
    idle_share: float
    share: float
    relay_share: float | None
    refused: int


class _Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    body: str = ""
    headers: dict[str, str] = {}


def measure(citadel: Citadel, relay: Target | None, seconds: float) -> Heartbeats:
    """Register the servers, then measure a quiet time of ``seconds`` and one with their heartbeats."""
    _register(citadel)
    time.sleep(SETTLING)
    idle, beats, refused = _cost(citadel, _heartbeats(citadel), seconds)
    relayed = _cost(relay, lambda _: _Request("GET", "/health"), seconds)[1] if relay else None
    return Heartbeats(SERVERS / INTERVAL, idle, beats, relayed, refused)


def _cost(target: Target, request: Callable[[int], _Request], seconds: float) -> tuple[float, float, int]:
    """The share of a core that is taken without any requests, what they take more, and how many were refused."""
    begun, before = time.monotonic(), _cpu_seconds(target)
    time.sleep(seconds)
    idle = (_cpu_seconds(target) - before) / (time.monotonic() - begun)
    begun, before = time.monotonic(), _cpu_seconds(target)
    refused = _send(target, request, begun, seconds)
    busy = (_cpu_seconds(target) - before) / (time.monotonic() - begun)
    return idle * 100, (busy - idle) * 100, refused


def _register(citadel: Citadel) -> None:
    """Disabled ones: active ones, of which none is there, would all be probed, told as unhealthy and failed over, and
    what that costs is not the question. A heartbeat is the same work whatever its server's state.
    """
    addresses = json.loads((citadel.citadel_home / "run" / "services.json").read_text())
    with psycopg.connect(addresses["DATABASE_URL"]) as connection:
        row = {"server_id": "", "scheme": "http", "hostname": "127.0.0.1", "port": 9, "state": "disabled", "weight": 1}
        row |= {"max_concurrent": 0, "capabilities": "[]", "services": "[]"}
        row |= dict.fromkeys(("base_path", "kind", "role", "api_key", "registered_by"), "")
        row |= dict.fromkeys(("health_endpoint", "models_endpoint", "metrics_endpoint"), "")
        connection.cursor().executemany(
            f"INSERT INTO orchestration_server ({', '.join(row)}, registered) "
            f"VALUES ({', '.join(f'%({name})s' for name in row)}, now())",
            [row | {"server_id": f"beats-{number}"} for number in range(SERVERS)],
        )


def _heartbeats(citadel: Citadel) -> Callable[[int], _Request]:
    key = json.loads((citadel.citadel_home / "first-run.json").read_text())["api_key"]
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def heartbeat(number: int) -> _Request:
        load = {"cpu": number % 100 / 100, "memory": 0.5, "gpu": 0.25, "in_flight": number % 7, "queue": 0}
        path = f"/orchestration/servers/beats-{number % SERVERS}/heartbeat"
        return _Request("POST", path, json.dumps({"load_metrics": load}), headers)

    return heartbeat


def _send(target: Target, request: Callable[[int], _Request], begun: float, seconds: float) -> int:
    """Send them at their pace, on one connection; how many were not taken."""
    where = urlsplit(target.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    refused = 0
    for number in range(int(seconds * SERVERS / INTERVAL)):
        time.sleep(max(0.0, begun + number * INTERVAL / SERVERS - time.monotonic()))
        connection.request(*msgspec.structs.astuple(request(number)))
        answer = connection.getresponse()
        answer.read()
        refused += answer.status != 200
    connection.close()
    return refused


def _cpu_seconds(target: Target) -> float:
    return sum(reading.cpu_seconds for reading in readings(target.server_pids()).values())
