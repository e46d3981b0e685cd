"""A Citadel of four workers, whose servers register themselves, for what must hold over all workers together."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import psutil
import psycopg
import pytest
import redis

from apps.orchestration.health.troubles import SUSPECTS
from apps.orchestration.health.watch import JUST_NOW, LOOK_EVERY
from tests.faults.invariants import eventually, stores, tell_nothing, to_stores
from tests.fleet.control import Fleet
from tests.gateway.elsewhere import Elsewhere
from tests.instance import Instance, shared, whole_lines

WORKERS = 4
SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_SERVER__WORKERS": str(WORKERS),
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
    "CITADEL_SECURITY__CONNECTIONS": "10000",
    "CITADEL_ROUTING__FIRST_BYTE_TIMEOUT": "20",
    "CITADEL_ROUTING__FIRST_BYTE_FLOOR": "2",
    "CITADEL_ROUTING__QUEUE_SIZE": "20",
    "CITADEL_ROUTING__QUEUE_TIMEOUT": "10",
    "CITADEL_ROUTING__SLOW_START": "4",
    "CITADEL_ROUTING__WORKLOAD_LEASE": "3",
}


@dataclass
class Reply:
    """A whole answer, how long it took in seconds, and when it was asked for."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    begun: float = 0.0

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])

    @property
    def server(self) -> str:
        return self.headers["x-citadel-server"]

    @property
    def tried(self) -> int:
        """How many servers were asked for it."""
        return int(self.headers["x-citadel-attempts"])

    def json(self) -> Any:
        return json.loads(self.body)


class Registered(Protocol):
    """A server on this machine that has a place in the registry."""

    server_id: str

    @property
    def port(self) -> int:
        """Where it listens."""


@dataclass
class Four:
    """The Citadel, and the test servers that it has."""

    citadel: Instance
    elsewhere: Elsewhere
    stack: ExitStack = field(default_factory=ExitStack)
    servers: list[Fleet] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    """Bodies of them, and the ends of streams with one."""

    def server(self, model: str, *, max_concurrent: int = 0, weight: int = 1, **options: Any) -> Fleet:
        """A new test server that holds `model`; every worker knows of it."""
        server = self.stack.enter_context(Fleet.start(models=[model], **options))
        self.servers.append(server)
        server.server_id = f"s-{secrets.token_hex(4)}"
        self.register(server, model, max_concurrent=max_concurrent, weight=weight)
        return server

    def register(self, server: Registered, model: str, **fields: Any) -> None:
        """As servers do it themselves."""
        import httpx

        body = {"id": server.server_id, "hostname": "127.0.0.1", "port": server.port, "models": [model], **fields}
        headers = {"authorization": f"Bearer {self.citadel.admin_key}"}
        answer = httpx.post(f"{self.citadel.url}/orchestration/servers/register", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        self.citadel.settle()

    def make_class(self, model: str, **fields: Any) -> None:
        """A class for this one model."""
        row = {"capability": "", "servers": [], "fallback": True, "shares": {}, "equal_shares": False, "strategy": ""}
        row |= {"name": f"c{secrets.token_hex(4)}", "position": 1, "patterns": [model], "hedge_ms": None, **fields}
        values = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in row.values()]
        with psycopg.connect(self.citadel.database_url) as connection:
            connection.execute(
                f"INSERT INTO orchestration_modelclass ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
                values,
            )
        self.citadel.settle()

    def listed(self, server: Registered) -> dict[str, Any]:
        """What the list says of a server."""
        import httpx

        headers = {"authorization": f"Bearer {self.citadel.admin_key}"}
        answer = httpx.get(f"{self.citadel.url}/orchestration/servers/list", headers=headers)
        return dict(answer.json()["servers"][server.server_id])

    async def until_listed(self, server: Fleet, status: str, within: float) -> dict[str, Any]:
        """What the list says as soon as it says that status."""
        deadline = time.monotonic() + within
        while (said := self.listed(server))["health_status"] != status:
            assert time.monotonic() < deadline, said
            await asyncio.sleep(0.1)
        return said

    @asynccontextmanager
    async def asking(self, key: str = "", *, one_worker: bool = False) -> AsyncIterator["Asker"]:
        """A client with that key, or of a new team, without limits. Each of its requests meets a worker by chance, or
        all meet one.
        """
        headers = {"authorization": f"Bearer {key or self.elsewhere.key()}"}
        connector = aiohttp.TCPConnector(limit=int(one_worker), force_close=not one_worker)
        async with aiohttp.ClientSession(self.citadel.url, headers=headers, connector=connector) as session:
            yield Asker(session, self.errors)


@dataclass
class Asker:
    """Asks as one key."""

    session: aiohttp.ClientSession
    errors: list[bytes]

    async def chat(self, model: str, text: str = "Hello", headers: dict[str, str] | None = None, **more: Any) -> Reply:
        """One request, to its end."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return await self.post("/v1/chat/completions", body, headers)

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
        """The same for any door."""
        begun = time.monotonic()
        async with self.session.post(path, json=body, headers=headers) as answer:
            content = await answer.read()
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if answer.status >= 400 or b'data: {"error"' in content:
                self.errors.append(content)
            return Reply(answer.status, headers, content, time.monotonic() - begun, begun)

    async def paced(self, model: str, rate: float, seconds: float, **more: Any) -> list[Reply]:
        """So many requests a second, whether the earlier ones have been answered or not."""
        tasks = []
        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(self.chat(model, f"question {number}", **more)))
        return list(await asyncio.gather(*tasks))


def operate(four: Four, server: Registered, what: str) -> None:
    """As an operator."""
    import httpx

    address = f"{four.citadel.url}/orchestration/" + what.format(server.server_id)
    answer = httpx.post(address, headers={"authorization": f"Bearer {four.citadel.admin_key}"})
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="session")
def four_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    base = tmp_path_factory.getbasetemp()
    folder = base / "four"
    folder.mkdir(exist_ok=True)
    with shared(Path(folder), SETTINGS) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere


@pytest.fixture
def four(four_workers: Elsewhere) -> Iterator[Four]:
    """The four workers, and test servers that are gone after the test."""
    four = Four(four_workers.citadel, four_workers)
    with left_as_it_was(four), four.stack:
        yield four
    _absolve_all(four.citadel.redis_url)
    for left in (2, 1, 0):
        try:
            _clean_up(four.citadel.database_url)
            break
        except psycopg.errors.DeadlockDetected:  # with what discovery writes of the same servers
            if not left:
                raise


def _absolve_all(redis_url: str) -> None:
    """Many requests that failed on two servers would leave it open for a minute whether the next one is to blame."""
    with redis.Redis.from_url(redis_url) as board:
        if board.delete(SUSPECTS):
            time.sleep(JUST_NOW + 2 * LOOK_EVERY)  # until no worker knows of them


def _clean_up(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "DELETE FROM orchestration_servedmodel USING orchestration_server s "
            "WHERE s.id = orchestration_servedmodel.server_id AND s.server_id LIKE 's-%'"
        )
        connection.execute("DELETE FROM orchestration_server WHERE server_id LIKE 's-%'")
        connection.execute("DELETE FROM orchestration_modelclass WHERE position = 1")


MEMORY_GROWTH = 1.10
CONNECTIONS_MORE = 2
YOUNG = 60.0
"""Seconds for which a worker still opens the connections that it comes to have."""
LOG_LINES = 5
"""For each failed request, at most."""


def workers(citadel: Instance) -> dict[str, psutil.Process]:
    """The web workers, by their names."""
    return {file.stem: psutil.Process(int(file.read_text())) for file in (citadel.home / "run").glob("web-*.pid")}


@contextmanager
def left_as_it_was(four: Four) -> Iterator[None]:
    """What must hold after every case, over all workers: FAULTS."""
    citadel, before = four.citadel, workers(four.citadel)
    memory = {name: process.memory_info().rss for name, process in before.items()}
    links = {name: to_stores(citadel, process) for name, process in before.items()}
    young = {name for name, process in before.items() if time.time() - process.create_time() < YOUNG}
    logs = {log: log.stat().st_size for log in citadel.home.glob("logs/web-*.log")}
    yield
    now = workers(citadel)
    assert now.keys() == before.keys(), "a worker is missing"
    _no_place_is_held(citadel)

    def connections() -> list[str]:
        ports = {server.port for server in four.servers}
        left = []
        for name, process in now.items():
            to_servers = Counter(link.raddr.port for link in process.net_connections("inet") if link.raddr)
            left += [f"{name}: {to_servers[port]} to {port}" for port in ports if to_servers[port] > CONNECTIONS_MORE]
            more = to_stores(citadel, process) - links[name]
            if process == before[name] and name not in young and abs(more) > CONNECTIONS_MORE:
                left.append(f"{name}: {more:+} to the stores")
        return left

    def growth() -> dict[str, float]:
        lived = [name for name in now if now[name] == before[name] and name not in young]
        rss = {name: now[name].memory_info().rss / memory[name] for name in lived}
        return {name: grown for name, grown in rss.items() if grown > MEMORY_GROWTH}

    eventually(connections)
    eventually(growth)
    tell_nothing(four.errors, [str(server.port).encode() for server in four.servers])
    of_request = Counter(entry.get("request_id", "") for entry in _logged(logs))
    del of_request[""]
    assert all(count <= LOG_LINES for count in of_request.values()), of_request.most_common(3)


def _no_place_is_held(citadel: Instance) -> None:
    """Of a server, by a request that has ended, in the room or out of it."""
    with redis.Redis.from_url(stores(citadel)["REDIS_URL"]) as state:

        def places() -> list[object]:
            held = [(key, worker) for key in state.keys("limits:running:*") for worker in state.hkeys(key)]
            waits = [
                key for kind in ("waits", "line", "room", "ticket", "time") for key in state.keys(f"limits:{kind}:*")
            ]
            waits += state.hkeys("limits:waited")
            # A workload holds its place for its client, until that gives it back or its lease ends.
            return [*((key, name) for key, name in held if not name.startswith(b"work:")), *waits]

        eventually(places)


def _logged(logs: dict[Path, int]) -> Iterator[dict[str, Any]]:
    """What the workers have written since they were of these sizes."""
    for log, size in logs.items():
        for line in whole_lines(log.read_bytes()[size:]):
            entry = json.loads(line)
            assert entry["event"] != "unexpected_failure", entry
            assert "Exception in ASGI application" not in entry["event"], entry
            yield entry


def most_at_once(server: Fleet) -> int:
    """Requests for whole answers that the server worked on at the same time.

    Work ends with the first byte: when the server writes down that the last has gone, the next request may be there.
    """
    visits = [visit for visit in server.log() if visit.method == "POST"]
    ends = [visit.first_byte_at or visit.ended_at for visit in visits]
    turns = [(visit.begun_at, 1) for visit in visits] + [(end, -1) for end in ends if end]
    most = now = 0
    for _, step in sorted(turns):
        now += step
        most = max(most, now)
    return most
