"""What must hold after every case, whatever was broken in it."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil
import psycopg
import redis

from tests.fleet.control import Fleet
from tests.held_up import HELD_UP
from tests.instance import Instance, whole_lines

WITHIN = 5.0 + HELD_UP
"""Seconds after which slots, leases and connections are back."""
MEMORY_GROWTH = 1.10
CONNECTIONS_MORE = 2
LOG_LINES = 5
"""For each failed request, at most."""

LEADS = """
local leads = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
    if redis.call('TYPE', key).ok == 'string' and redis.call('GETRANGE', key, 0, 4) == 'lead:' then
        leads[#leads + 1] = key
    end
end
return leads"""
"""Keys of the cache whose entries are still being made."""

STACK = re.compile(rb'Traceback|File \\?"|line \d+, in |\b\w+(?:\.\w+)*\.py\b|\w+Error\(|site-packages')
HOST = re.compile(rb"127\.0\.0\.1|localhost|\bhttps?://|:\d{4,5}\b")
PATH = re.compile(rb"(?<![\w/])/(?:work|usr|home|tmp|root|var|opt|etc|srv|proc)/")
KEY = re.compile(rb"ctd_|Bearer \S{8}|sk-\w{8}")


@dataclass
class Case:
    """What a test did, so that afterwards it can be looked up what came of each request."""

    citadel: Instance
    prefix: str
    """What the ids of its requests begin with."""
    keys: list[str] = field(default_factory=list)
    servers: list[Fleet] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    """Ids of requests that reached the pipeline: one record each."""
    refused: set[str] = field(default_factory=set)
    """Ids of requests that were sent away before it: one record at most."""
    failed: set[str] = field(default_factory=set)
    errors: list[bytes] = field(default_factory=list)
    """Error bodies, and the error events of streams."""
    known_secrets: list[bytes] = field(default_factory=list)
    check_memory: bool = True

    def new_key(self, **limits: int) -> str:
        """A key of a team of its own, which may run so many requests at once that its slots are counted."""
        return self.keep(self.citadel.key(**{"concurrent": 100_000, **limits}))

    def keep(self, key: str) -> str:
        """Takes a key into the case."""
        self.keys.append(key)
        return key


@contextmanager
def checked(citadel: Instance, prefix: str) -> Iterator[Case]:
    """A case; at its end everything must be as it was before."""
    worker = psutil.Process(citadel.worker)
    memory, elsewhere = worker.memory_info().rss, to_stores(citadel, worker)
    log = citadel.home / "logs" / "web-1.log"
    log_size = log.read_bytes().rfind(b"\n") + 1
    case = Case(citadel, prefix)
    yield case
    assert worker.is_running(), "the worker has died"
    _slots_are_back(case)
    _connections_are_back(case, worker, elsewhere)
    _records_are_whole(case)
    _errors_tell_nothing(case)
    _log_is_short(case, log.read_bytes()[log_size:])
    if case.check_memory:
        _memory_is_back(worker, memory)


def eventually(
    describe: Callable[[], object], *, holds: Callable[[object], bool] | None = None, within: float = WITHIN
) -> None:
    """Waits until `describe` gives nothing (or what `holds`); says what is left when that takes too long."""
    good = holds or (lambda left: not left)
    deadline = time.monotonic() + within
    while not good(left := describe()):
        assert time.monotonic() < deadline, f"{describe.__name__.strip('_')}: still {left} after {within:g} s"
        time.sleep(0.02)


def _slots_are_back(case: Case) -> None:
    state = redis.Redis.from_url(case.citadel.redis_url)
    cache = redis.Redis.from_url(re.sub(r"db=\d+", "db=1", stores(case.citadel)["REDIS_CACHE_URL"]))
    names = [f"limits:running:{key.split('_')[1]}" for key in case.keys]

    def slots_and_leases() -> list[object]:
        slots = [(name, worker) for name in names for worker in state.hkeys(name)]
        return [*slots, *cache.eval(LEADS, 0)]

    with state, cache:
        eventually(slots_and_leases)


def to_stores(citadel: Instance, worker: psutil.Process) -> int:
    """Connections to PostgreSQL and Redis, which listen on ports or on sockets in the file system."""
    ports = {urlsplit(url).port for url in stores(citadel).values()}
    return len([link for link in worker.net_connections("inet") if link.raddr and link.raddr.port in ports]) + len(
        worker.net_connections("unix")
    )


def stores(citadel: Instance) -> dict[str, str]:
    addresses: dict[str, str] = json.loads((citadel.home / "run" / "services.json").read_text())
    return {name: url for name, url in addresses.items() if name.endswith("_URL")}


def _connections_are_back(case: Case, worker: psutil.Process, before: int) -> None:
    """To the stores no more than before, to the case's servers a few idle ones at most, to its clients none."""
    ports = {server.port for server in case.servers}
    mine = psutil.Process()
    own_port = int(case.citadel.url.rpartition(":")[2])

    def connections_left() -> list[object]:
        to_servers = [link for link in worker.net_connections("inet") if link.raddr and link.raddr.port in ports]
        to_clients = [link for link in mine.net_connections("inet") if link.raddr and link.raddr.port == own_port]
        left: list[object] = to_clients
        of_each = Counter(link.raddr.port for link in to_servers)
        left += [link for link in to_servers if of_each[link.raddr.port] > CONNECTIONS_MORE]
        if (more := to_stores(case.citadel, worker) - before) > CONNECTIONS_MORE:
            left.append(f"{more} more to the stores")
        return left

    eventually(connections_left)


def _records_are_whole(case: Case) -> None:
    counted: Counter[str] = Counter()

    def requests_without_record() -> set[str]:
        rows = connection.execute(
            "SELECT request_id, count(*) FROM audit_record WHERE starts_with(request_id, %s) GROUP BY 1", (case.prefix,)
        ).fetchall()
        counted.clear()
        counted.update(dict(rows))
        return case.recorded - counted.keys()

    with psycopg.connect(case.citadel.database_url, autocommit=True) as connection:
        eventually(requests_without_record)
    twice = {identity for identity, count in counted.items() if count > 1}
    assert not twice, f"more than one record: {sorted(twice)[:5]}"
    strangers = counted.keys() - case.recorded - case.refused
    assert not strangers, f"records of requests that nobody sent: {sorted(strangers)[:5]}"


def _errors_tell_nothing(case: Case) -> None:
    ports = [str(server.port).encode() for server in case.servers]
    tell_nothing(case.errors, [*ports, *case.known_secrets, *(key.encode() for key in case.keys)])


def tell_nothing(errors: Iterable[bytes], secrets: Sequence[bytes]) -> None:
    """No body of an error holds a stack, a host, a path, a key, or one of these secrets."""
    for body in errors:
        for what, pattern in (("a stack", STACK), ("a host", HOST), ("a path", PATH), ("a key", KEY)):
            assert not pattern.search(body), f"an error holds {what}: {body[:500]!r}"
        for secret in secrets:
            assert secret not in body, f"an error holds {secret!r}: {body[:500]!r}"


def _log_is_short(case: Case, text: bytes) -> None:
    of_request: Counter[str] = Counter()
    for line in whole_lines(text):
        assert b'"unexpected_failure"' not in line, line.decode()
        assert b"Exception in ASGI application" not in line, line.decode()
        entry = json.loads(line)
        of_request[entry.get("request_id", "")] += 1
    talkative = {
        identity: count
        for identity, count in of_request.items()
        if identity.startswith(case.prefix) and count > LOG_LINES
    }
    assert not talkative, f"lines of log for one request: {talkative}"
    ours = sum(count for identity, count in of_request.items() if identity.startswith(case.prefix))
    assert ours <= LOG_LINES * len(case.failed) + LOG_LINES, f"{ours} lines for {len(case.failed)} failed requests"


def _memory_is_back(worker: psutil.Process, before: int) -> None:
    def memory_in_mb() -> object:
        return worker.memory_info().rss / 1e6

    def is_back(now: object) -> bool:
        return isinstance(now, float) and now * 1e6 <= before * MEMORY_GROWTH

    eventually(memory_in_mb, holds=is_back)
