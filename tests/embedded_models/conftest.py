"""Starts the local model servers as the supervisor does: programs of their own on free loopback ports."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.instance import free_port


@dataclass
class ModelServer:
    """A running server program and a client for it."""

    process: subprocess.Popen[bytes]
    port: int
    client: httpx.Client

    def wait_until_healthy(self) -> set[int]:
        """Every status that `/health` gave until it was 200."""
        seen = set()
        deadline = time.monotonic() + 20
        while 200 not in seen:
            assert self.process.poll() is None, "the server ended by itself"
            assert time.monotonic() < deadline, "the server isn't healthy after 20 s"
            try:
                seen.add(self.client.get("/health").status_code)
            except httpx.TransportError:
                time.sleep(0.02)
        return seen


@contextmanager
def running(module: str, *arguments: str, home: Path | None = None) -> Iterator[ModelServer]:
    """The server program MODULE on a free port, from before it listens until it has ended; HOME is its user's."""
    port = free_port()
    command = [sys.executable, "-m", module, "--port", str(port), *arguments]
    environment = {**os.environ, **({"HOME": str(home)} if home else {})}
    with (
        subprocess.Popen(command, env=environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            yield ModelServer(process, port, client)
        finally:
            process.kill()
