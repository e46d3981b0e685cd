"""A program for the tests: the supervisor over the real PostgreSQL and Redis and one small web child, without Django.

`python -m tests.embedded.small_citadel`, with the settings of the real one (CITADEL_HOME, CITADEL_SERVER__PORT).
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from citadel import config
from citadel.embedded import ready, stores, web
from citadel.embedded.__main__ import narrator
from citadel.embedded.home import Home, StartError, write_private_json
from citadel.embedded.lifetime import run
from citadel.embedded.supervisor import Child, Supervisor
from citadel.sections import Config

PAGE = Path(__file__).with_name("page.py")


async def serve(home: Home, settings: Config) -> None:
    say = narrator(home.log("supervisor"))

    async def answers() -> str | None:
        return await ready.http(f"{settings.server.url}/health/live")

    with ExitStack() as held:

        async def start(supervisor: Supervisor) -> None:
            public = held.enter_context(web.bind(settings.server.host, settings.server.port))

            def command() -> Sequence[str]:
                return [sys.executable, str(PAGE), str(public.fileno())]

            write_private_json(home.services, await stores.start(home, settings, supervisor, say))
            web.listen(public)
            await supervisor.start(Child("web-1", command, answers, files=(public.fileno(),), tier=2))
            say("Ready")

        await run(home, say, start, drain=settings.timeouts.drain, at_stop=held.close)


def main() -> int:
    home = Home(config.home_folder())
    try:
        home.prepare()
        with home.occupied():
            home.services.unlink(missing_ok=True)
            asyncio.run(serve(home, config.load()))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
