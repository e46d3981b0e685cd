"""From the start to the last child's end: what the signals mean, and that nothing stays behind."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from citadel.embedded import sockets
from citadel.embedded.home import Home
from citadel.embedded.supervisor import Supervisor

Say = Callable[[str], None]


async def run(
    home: Home,
    say: Say,
    start: Callable[[Supervisor], Coroutine[Any, Any, None]],
    *,
    drain: float,
    at_stop: Callable[[], None] = lambda: None,
) -> None:
    """START children with a supervisor and keep them until SIGINT, SIGTERM or SIGHUP; before they end call AT_STOP.

    DRAIN are the seconds that children give running answers then, which is told. A second signal ends the patience with
    those that take their time. What START raises is raised, but only when all that it had started has ended.
    """
    supervisor = Supervisor(home, say)
    asked_to_stop = _on_signals(supervisor, say, drain)
    supervisor.take_over()
    logs = asyncio.create_task(supervisor.look_after_logs())
    starting = asyncio.create_task(start(supervisor))
    stopping = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
    finally:
        starting.cancel()
        await asyncio.wait((starting,))
        if asked_to_stop.is_set():
            with suppress(OSError):  # a full disk must not keep the children alive
                home.stopping.write_text(f"{drain:g}\n")
        at_stop()
        with suppress(OSError):  # nor must one that can't be written to
            home.services.unlink(missing_ok=True)
            home.started_with.unlink(missing_ok=True)
        await supervisor.stop()
        logs.cancel()
        sockets.remove(home)
        supervisor.give_back()
        home.stopping.unlink(missing_ok=True)


def _on_signals(supervisor: Supervisor, say: Say, drain: float) -> asyncio.Event:
    """An event that the first signal sets; the next one ends the supervisor's patience."""
    asked_to_stop = asyncio.Event()

    def stop() -> None:
        if asked_to_stop.is_set():
            say("Stopping at once")
            supervisor.hurry()
            return
        say(f"Stopping; running answers may end first, within {drain:g} s. Ctrl-C once more stops at once.")
        asked_to_stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup means: go on without the terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop)
    return asked_to_stop
