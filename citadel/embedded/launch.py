"""The story of one embedded Citadel: what starts when. What stops when follows from the children's tiers."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from socket import socket

from citadel.config import outspoken
from citadel.embedded import background, banner, demo, ready, stores, web
from citadel.embedded.home import Home, write_private_json
from citadel.embedded.lifetime import run
from citadel.embedded.patience import together, until
from citadel.embedded.supervisor import Supervisor
from citadel.sections import Config

EVERY_MODEL_PATIENCE_SECONDS = 3.0


async def serve(home: Home, config: Config, say: Callable[[str], None]) -> None:
    """Run Citadel in HOME until SIGINT or SIGTERM. StartError when something that must start does not."""
    with ExitStack() as held:

        async def start(supervisor: Supervisor) -> None:
            # First of all: most often what stands in the way is the port.
            public = held.enter_context(web.bind(config.server.host, config.server.port))
            await _Start(home, config, public, supervisor, say).everything()

        await run(home, say, start, drain=config.timeouts.drain, at_stop=held.close)


@dataclass(frozen=True)
class _Start:
    home: Home
    config: Config
    public: socket
    supervisor: Supervisor
    say: Callable[[str], None]

    async def everything(self) -> None:
        addresses = await stores.start(self.home, self.config, self.supervisor, self.say)
        write_private_json(self.home.started_with, outspoken(os.environ))
        write_private_json(self.home.services, addresses)
        self.supervisor.environment.update(
            addresses, CITADEL_HOME=str(self.home.path), DJANGO_SETTINGS_MODULE="citadel.settings"
        )
        fleet = {server: demo.port_of(self.home, server) for server in demo.FLEET} if self.config.demo_fleet else {}
        registrations = [f"{server.server_id}={demo.address(port)}" for server, port in fleet.items()]
        if self.config.database_url:
            registrations = ["--mark", demo.mark(self.home), *registrations]
        await together(
            self._tables_and_registry(registrations),
            *(self._demo_server(server, port) for server, port in fleet.items()),
        )
        url = self.config.server.url
        behind = background.children(self.home, addresses["REDIS_URL"])
        await together(self._web_workers(), *(self.supervisor.start(child) for child in behind))
        key = banner.key(self.home)
        unserved = await until(lambda: ready.every_model(url, key), EVERY_MODEL_PATIENCE_SECONDS)
        banner.show(self.home, self.config, url, self.public.getsockname()[0])
        if unserved:
            self.say(f"Not every model can be served: {unserved}. See: bin/manage server list")

    async def _tables_and_registry(self, registrations: list[str]) -> None:
        await self.supervisor.run("first-run", [sys.executable, "-m", "citadel.embedded.first_run", *registrations])
        self.say("The database's tables and the registry are up to date")

    async def _demo_server(self, server: demo.DemoServer, port: int) -> None:
        await self.supervisor.start(server.child(port))
        self.say(f"{server.model} answers ({server.server_id}, {demo.address(port)})")

    async def _web_workers(self) -> None:
        # Counters of workers that are gone would be added to those of today's.
        shutil.rmtree(self.home.run / "metrics", ignore_errors=True)
        web.listen(self.public)
        drain = self.config.timeouts.drain
        workers = [web.worker(self.home, 1 + n, self.public, drain) for n in range(self.config.server.workers)]
        await together(*(self.supervisor.start(worker) for worker in workers))
