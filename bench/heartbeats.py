"""What heartbeats cost a web worker: those of 1,000 servers, each every 30 seconds, one after the other."""

import http.client
import json
import time
from urllib.parse import urlsplit

import msgspec
import psycopg

from bench.citadel import Citadel
from bench.usage import readings

SERVERS = 1_000
INTERVAL = 30.0
SETTLING = 3.0
"""Seconds after the servers have come in and before anything is measured."""


class Heartbeats(msgspec.Struct, frozen=True):
    """Shares of one core: of the worker with the heartbeats, and without."""

    rate: float
    core: float
    idle_core: float
    refused: int

    @property
    def share(self) -> float:
        """What they cost, in hundredths of a core."""
        return (self.core - self.idle_core) * 100


def measure(citadel: Citadel, seconds: float) -> Heartbeats:
    """Register the servers, then measure a quiet time of ``seconds`` and one with their heartbeats."""
    _register(citadel)
    time.sleep(SETTLING)
    begun, before = time.monotonic(), _worker_seconds(citadel)
    time.sleep(seconds)
    idle = (_worker_seconds(citadel) - before) / (time.monotonic() - begun)
    begun, before = time.monotonic(), _worker_seconds(citadel)
    refused = _send(citadel, begun, seconds)
    took = time.monotonic() - begun
    return Heartbeats(SERVERS / INTERVAL, (_worker_seconds(citadel) - before) / took, idle, refused)


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


def _send(citadel: Citadel, begun: float, seconds: float) -> int:
    """Send them at their pace, on one connection; how many were not taken."""
    where = urlsplit(citadel.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    key = json.loads((citadel.citadel_home / "first-run.json").read_text())["api_key"]
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    refused = 0
    for number in range(int(seconds * SERVERS / INTERVAL)):
        load = {"cpu": number % 100 / 100, "memory": 0.5, "gpu": 0.25, "in_flight": number % 7, "queue": 0}
        time.sleep(max(0.0, begun + number * INTERVAL / SERVERS - time.monotonic()))
        path = f"/orchestration/servers/beats-{number % SERVERS}/heartbeat"
        connection.request("POST", path, json.dumps({"load_metrics": load}), headers)
        answer = connection.getresponse()
        answer.read()
        refused += answer.status != 200
    connection.close()
    return refused


def _worker_seconds(citadel: Citadel) -> float:
    return sum(reading.cpu_seconds for reading in readings(citadel.server_pids()).values())
