"""`bin/manage agent --server URL …`: registers a machine that can't do it itself, and says how it is until stopped.

It runs beside the server, on machines where no Citadel is: it needs neither settings nor database, only a key, out of
`CITADEL_API_KEY` or a file. While Citadel is away it tries again, with longer and longer pauses.
"""

import argparse
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psutil

from apps.orchestration import key_file
from citadel.addresses import authorities

SERVERS = "/orchestration/servers"
TIMEOUT = 10.0
CONNECT_TIMEOUT = 2.0
INTERVAL = 30.0
"""Seconds between heartbeats, unless Citadel says otherwise."""
SHORTEST_INTERVAL = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between attempts while Citadel is away."""
PASSES = frozenset({404, 408, 425, 429})
"""4xx that another attempt may mend; any other says that this one is wrong."""
LONGEST_NAME = 58
"""Characters of the machine's name in an id, which has 64 at most, with the longest port."""
GPU = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")


class Away(Exception):
    """Citadel can't be reached, or can't answer now."""


class Refusal(Exception):
    """Citadel does not want it like this; trying again would not help."""


class Gone(Exception):
    """Citadel does not know this server any more."""


class Agent:
    """One machine's voice. A `registration` without a hostname gets the machine's own address towards Citadel, and is
    sent anew when that is another one. Where another machine registers by its id, this one is refused.
    """

    def __init__(self, client: httpx.Client, registration: dict[str, Any], *, interval: float, deregister: bool):
        self._client = client
        self._registration = registration
        self._place = f"{SERVERS}/{quote(registration['id'], safe='')}"
        self._asked_interval = interval
        self._interval = interval or INTERVAL
        self._deregister = deregister
        self._stop = threading.Event()
        self._registered = False
        self._hostname = ""
        self._url = ""

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ends `run` soon."""
        self._stop.set()

    def run(self) -> None:
        """Registers and sends heartbeats until `stop`; Refusal."""
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                self._speak()
                pause = FIRST_PAUSE
                self._stop.wait(self._interval)
            except Gone:
                self._registered = False
                self._stop.wait(FIRST_PAUSE)
            except Away as away:
                say(f"Citadel is away ({away}); next attempt in {pause:.0f} s")
                self._stop.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311  # so that not all come at once
                pause = min(pause * 2, LONGEST_PAUSE)
        if self._deregister and self._registered:
            self._leave()

    def _speak(self) -> None:
        hostname = self._registration.get("hostname") or _own_address(str(self._client.base_url))
        if not self._registered or hostname != self._hostname:  # which changes when the machine gets another one
            told = self._register(hostname)
            self._hostname, self._registered = hostname, True
            self._url = str(told.get("url") or "")  # older Citadels don't tell it
            say(f"registered {self._registration['id']}: {told.get('state', 'active')}")
            self._look_at_server()
        told = self._send("POST", f"{self._place}/heartbeat", {"load_metrics": load(), "url": self._url})
        expected = float(told.get("heartbeat_interval") or INTERVAL)
        if self._asked_interval > expected and self._interval != expected:
            say(f"a heartbeat every {expected:g} s, as Citadel expects them, not every {self._asked_interval:g} s")
        self._interval = min(self._asked_interval or expected, expected)

    def _register(self, hostname: str) -> dict[str, Any]:
        try:
            return self._send("POST", f"{SERVERS}/register", {**self._registration, "hostname": hostname})
        except Gone:  # no Citadel says that
            raise Away("status 404: is --server where Citadel itself begins, without a path?") from None

    def _look_at_server(self) -> None:
        """Says so where nothing takes connections at the address that Citadel was told: it may come up later."""
        host, port = self._hostname, self._registration["port"]
        try:
            socket.create_connection((host, port), CONNECT_TIMEOUT).close()
        except OSError as error:
            say(
                f"Nothing answers on {host} port {port} ({error.strerror or error}). Is the server running, on that "
                "port, and on more than 127.0.0.1? Citadel sends requests there once it answers."
            )

    def _leave(self) -> None:
        try:
            self._send("DELETE", self._place)
            say(f"deregistered {self._registration['id']}")
        except (Away, Gone, Refusal) as trouble:
            say(f"not deregistered: {trouble}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body)
            told = answer.json()
        except httpx.HTTPError as error:
            raise Away(str(error) or type(error).__name__) from None
        except ValueError:
            raise Away(f"status {answer.status_code} and no JSON: is Citadel behind --server?") from None
        if answer.is_success and isinstance(told, dict):
            return told
        if answer.status_code == 404:
            raise Gone
        if 400 <= answer.status_code < 500 and answer.status_code not in PASSES:
            raise Refusal(_reason(told) or f"status {answer.status_code}")
        raise Away(f"status {answer.status_code}")


def _reason(told: Any) -> str:
    error = told.get("error") if isinstance(told, dict) else None
    return str(error.get("message") or "") if isinstance(error, dict) else ""


def load() -> dict[str, float]:
    """What this machine has to do, in shares from 0 to 1; CPU since the last time it was asked."""
    found = {"cpu": psutil.cpu_percent() / 100, "memory": psutil.virtual_memory().percent / 100}
    gpu = _gpu()
    return {name: round(min(1.0, share), 4) for name, share in {**found, **gpu}.items()}


def _gpu() -> dict[str, float]:
    """The mean over NVIDIA's devices; nothing where there are none."""
    program = shutil.which(GPU[0])
    if not program:
        return {}
    try:
        told = subprocess.run([program, *GPU[1:]], capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
        shares = [float(line) / 100 for line in told.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {"gpu": sum(shares) / len(shares)} if shares else {}


def main(words: Sequence[str]) -> int:
    """The program; its exit code."""
    options = _arguments(words)
    try:
        client = httpx.Client(
            base_url=_checked(options.server),
            headers={"authorization": f"Bearer {_key(options.key_file)}"},
            verify=authorities(),
            timeout=TIMEOUT,
            follow_redirects=False,
        )
        with client:
            agent = Agent(client, _registration(options), interval=options.interval, deregister=options.deregister)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, agent.stop)
            psutil.cpu_percent()  # the next call tells the share since this one
            agent.run()
    except (Refusal, ValueError, OSError) as refusal:
        sys.stderr.write(f"agent: {refusal}\n")
        return 1
    return 0


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bin/manage agent",
        description="Registers a server of this machine with Citadel, and sends its heartbeats and load until stopped. "
        "The key, of the role server, is taken from CITADEL_API_KEY or --key-file.",
    )
    add = parser.add_argument
    add("--server", required=True, metavar="URL", help="where Citadel is, such as https://citadel.example")
    add("--port", required=True, type=int, help="of the server on this machine")
    add("--id", help="in the registry, of its own for each server; the machine's name and the port unless said")
    add("--hostname", help="by which Citadel reaches this machine; its own address towards Citadel unless said")
    add("--scheme", choices=["http", "https"], default="http")
    add("--kind", choices=["openai", "ollama", "llamacpp", "vllm", "citadel", "http"], help="found out unless said")
    add("--role", default="")
    add("--capability", action="append", default=[], help="may be repeated")
    add("--service", action="append", default=[], help="may be repeated")
    add("--model", action="append", default=[], help="known at once, before the server is asked; may be repeated")
    add("--weight", type=int)
    add("--max-concurrent", type=int)
    add("--key-file", type=Path, help="a file that holds the key, which only its owner can read")
    add("--server-key-file", type=Path, help="likewise: the key that this machine's server wants")
    add("--interval", type=_seconds, default=0, help="seconds between heartbeats; what Citadel says unless fewer")
    add("--deregister", action="store_true", help="take the server out of the registry at the end")
    return parser.parse_args(words)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not SHORTEST_INTERVAL <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be {SHORTEST_INTERVAL:g} s or more")
    return seconds


def _registration(options: argparse.Namespace) -> dict[str, Any]:
    told = {
        "id": options.id or f"{socket.gethostname()[:LONGEST_NAME]}-{options.port}",
        "hostname": options.hostname,
        "port": options.port,
        "scheme": options.scheme,
        "kind": options.kind,
        "role": options.role,
        "capabilities": options.capability,
        "services": options.service,
        "models": options.model,
        "weight": options.weight,
        "max_concurrent": options.max_concurrent,
        "api_key": key_file.read(options.server_key_file) if options.server_key_file else None,
    }
    return {name: value for name, value in told.items() if value not in (None, "", [])}


def _own_address(url: str) -> str:
    """The address from which this machine speaks to Citadel; nothing is sent for that. Away where no way leads there,
    as at a machine's start.
    """
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Away(f"{parts.hostname}: {error.strerror or error}") from None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"{url!r} is not an address like https://citadel.example")
    return url.rstrip("/")


def _key(file: Path | None) -> str:
    key = key_file.read(file) if file else os.environ.get("CITADEL_API_KEY", "").strip()
    if not key:
        raise ValueError("no key: set CITADEL_API_KEY, or name a file with --key-file")
    return key
