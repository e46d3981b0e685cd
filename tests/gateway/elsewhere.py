"""Another Citadel than the run's own: changed by the command line, since the tests' own Django is not its."""

import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
import psycopg
from psycopg.types.json import Jsonb

from apps.gateway.access.keys.shape import Digester, mint
from citadel import config
from tests.command import manage
from tests.fleet.control import Fleet
from tests.gateway.client import Client
from tests.instance import Instance


@dataclass(frozen=True)
class Elsewhere:
    """A Citadel, a test server behind it, and the server's model."""

    citadel: Instance
    server: Fleet
    model: str
    unlimited: str
    """A key without limits."""

    @classmethod
    @contextmanager
    def on(cls, citadel: Instance) -> Iterator["Elsewhere"]:
        """With a new server in the registry of `citadel`, which is taken out at the end."""
        name = f"m-{secrets.token_hex(4)}"
        with Fleet.start(models=[name]) as server:
            elsewhere = cls(citadel, server, name, _make_key(citadel))
            elsewhere.command("server", "add", name, server.url)
            citadel.settle()
            yield elsewhere
            elsewhere.command("server", "remove", name)

    def command(self, *words: str) -> str:
        """What a command says that must succeed."""
        return _command(self.citadel, *words)

    def key(self, role: str = "developer", scopes: Sequence[str] | None = None, **limits: int) -> str:
        """A new key of a new team, without limits unless said."""
        return _make_key(self.citadel, role, scopes, **limits)

    def silent_redis(self) -> AbstractContextManager[None]:
        """Its Redis takes what comes and answers nothing. Not for a Citadel that others use."""
        return self._stopped("redis")

    def silent_database(self) -> AbstractContextManager[None]:
        """Its PostgreSQL says nothing on new connections, and serves those that it has. Not for one that others use."""
        return self._stopped("postgres")

    @contextmanager
    def _stopped(self, process: str) -> Iterator[None]:
        pid = int((self.citadel.home / "run" / f"{process}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @asynccontextmanager
    async def asking(self, key: str | None = None) -> AsyncIterator[Client]:
        """A client with `key`, or with one without limits; any number of connections."""
        headers = {"authorization": f"Bearer {key or self.unlimited}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.citadel.url, headers=headers, connector=connector) as session:
            yield Client(session)


def _make_key(
    citadel: Instance,
    role: str = "developer",
    scopes: Sequence[str] | None = None,
    *,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
    concurrent: int = 0,
) -> str:
    """As `key create --max-priority critical` makes it, in a hundredth of the time that a command takes."""
    secret = config.read({"CITADEL_HOME": str(citadel.home)})[0].secret
    key, key_id = mint()
    team = f"team-{secrets.token_hex(4)}"
    may = (role, None if scopes is None else Jsonb(scopes))
    limits = (requests_per_minute, tokens_per_minute, concurrent)
    with psycopg.connect(citadel.database_url) as connection:
        connection.execute(
            "WITH team AS (INSERT INTO gateway_team (slug, name, created) VALUES (%s, %s, now()) RETURNING id) "
            "INSERT INTO gateway_key "
            "(key_id, digest, name, team_id, role, scopes, "
            "requests_per_minute, tokens_per_minute, concurrent, max_priority, created) "
            "SELECT %s, %s, 'test', id, %s, %s, %s, %s, %s, 'critical', now() FROM team",
            (team, team, key_id, Digester(secret)(key.encode()), *may, *limits),
        )
    return key


def _command(citadel: Instance, *words: str) -> str:
    done = manage(citadel.home, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
