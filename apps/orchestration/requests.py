"""What this app's views find on a request: the shell makes it, authentication adds `auth`."""

from typing import Protocol

from django.http import QueryDict

from apps.orchestration.fleet import Fleet
from apps.orchestration.health.board import Board
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.watch import Watch
from citadel.caller import Caller
from citadel.database import Pool
from citadel.sections import Config


class Worker(Protocol):
    """What a web worker has, as far as this app uses it."""

    ready: bool
    draining: bool
    config: Config
    board: Board
    pool: Pool
    watch: Watch
    standings: Standings

    @property
    def fleet(self) -> Fleet:
        """The snapshot in force."""

    @property
    def redis_available(self) -> bool:
        """Whether the state instance answers."""

    @property
    def database_available(self) -> bool:
        """Whether PostgreSQL has answered when it was last asked for news, as it is each second."""


class FleetRequest(Protocol):
    """A request on the lean path."""

    auth: Caller
    raw_headers: dict[bytes, bytes]

    @property
    def GET(self) -> QueryDict:
        """The query."""

    @property
    def runtime(self) -> Worker:
        """The worker that it has come to."""

    @property
    def body(self) -> bytes:
        """The whole body."""
