"""What is measured: the upstream alone, nginx, the bare relay, Citadel; each a server that takes the same requests."""

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from bench import processes
from bench.processes import PYTHON, Cores

START_SECONDS = 20.0
OTHERS = 3

NGINX_CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid {home}/nginx.pid;
error_log {home}/nginx-error.log warn;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_body_buffer_size 64k;
    keepalive_requests 1000000000;
    upstream bench {{
        server 127.0.0.1:{upstream_port};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


class Target(ABC):
    """A server to send requests to. ``key`` is the API key it wants (empty: none), ``signing_secret`` what signed
    requests are signed with, ``sent`` counts requests.
    """

    name: str
    key: str = ""
    signing_secret: str = ""

    def __init__(self, home: Path, cores: Cores) -> None:
        """Take a directory for its files and the cores of this run."""
        self.home = home
        self.cores = cores
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / f"{self.name}.log"
        self.pid = 0
        self.sent = 0

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it answers. Raise RuntimeError with its log if it does not."""

    def stop(self) -> None:
        """Stop it and everything it has started."""
        if self.pid:
            processes.stop(self.pid)
            self.pid = 0

    def server_pids(self) -> tuple[int, ...]:
        """Return the processes that do the work of a request, whose time and memory the table tells."""
        return processes.tree(self.pid)

    def other_pids(self) -> tuple[int, ...]:
        """Return the processes that help them (databases and the like)."""
        return ()


class Upstream(Target):
    """The upstream by itself: the ceiling. It shares the load generator's core, as it does behind every proxy."""

    name = "upstream"

    def __init__(self, home: Path, cores: Cores) -> None:
        """Take also ports on which it is as if it were other servers."""
        super().__init__(home, cores)
        self.other_ports = [processes.free_port() for _ in range(OTHERS)]

    def start(self) -> None:
        """Start it."""
        command = [PYTHON, "-m", "bench.upstream", "--port", *map(str, (self.port, *self.other_ports))]
        self.pid = processes.start(command, self.cores.rest, self.log)
        processes.wait_for(f"{self.url}/health", self.pid, self.log, START_SECONDS)


class Relay(Target):
    """The bare ASGI relay."""

    name = "relay"

    def __init__(self, home: Path, cores: Cores, upstream: Upstream) -> None:
        """Take also the upstream to relay to."""
        super().__init__(home, cores)
        self.upstream = upstream

    def start(self) -> None:
        """Start it."""
        command = [PYTHON, "-m", "bench.relay", str(self.port), self.upstream.url]
        self.pid = processes.start(command, self.cores.server, self.log)
        processes.wait_for(f"{self.url}/health", self.pid, self.log, START_SECONDS)


class Nginx(Target):
    """nginx as a proxy: one process, connections to the upstream kept open, nothing buffered."""

    name = "nginx"

    def __init__(self, home: Path, cores: Cores, upstream: Upstream) -> None:
        """Take also the upstream to pass requests to."""
        super().__init__(home, cores)
        self.upstream = upstream

    @staticmethod
    def program() -> str | None:
        """Return the path of nginx, None where it is not installed."""
        return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

    def start(self) -> None:
        """Write its configuration and start it. Raise RuntimeError where it is not installed."""
        program = self.program()
        if program is None:
            raise RuntimeError("nginx is not installed; install the package nginx, or leave it out with --targets.")
        config = self.home / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(home=self.home, port=self.port, upstream_port=self.upstream.port))
        command = [program, "-p", str(self.home), "-e", str(self.home / "nginx-error.log"), "-c", str(config)]
        self.pid = processes.start(command, self.cores.server, self.log)
        processes.wait_for(f"{self.url}/health", self.pid, self.log, START_SECONDS)
