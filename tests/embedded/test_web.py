"""A web worker as the supervisor's child."""

import socket
from pathlib import Path

import pytest

from apps.gateway import runtime
from citadel.embedded import web
from citadel.embedded.home import Home


@pytest.mark.parametrize("drain", [1.0, 60.0, 3600.0])
def test_a_worker_is_not_killed_while_it_may_still_work(tmp_path: Path, drain: float) -> None:
    """Running answers get `timeouts.drain`, then the records on their way to the database get their time."""
    with socket.socket() as public:
        child = web.worker(Home(tmp_path), 1, public, drain)
    assert child.stop_timeout > drain + runtime.SHUTDOWN
