"""``python -m tests.fleet``: start one backend that can be told to misbehave."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import get_args

import msgspec

try:  # here and not where it is asked for, so that what is forked off has it
    import uvloop
except ImportError:
    uvloop = None

from .admin import AdminSite, catalogue_entry
from .backend.config import Ability, Backend, Kind
from .connection import Connection as HttpConnection
from .listener import Listener
from .rules import Rule
from .server import Server
from .troubles import CATALOGUE, TroubleSpecError


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet",
        description="An AI backend that can be told to misbehave. Prints its ports as one JSON line.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="the backend's port; 0 takes a free one")
    parser.add_argument("--admin-port", type=int, default=0, help="the port of /fleet/...; 0 takes a free one")
    parser.add_argument("--kind", choices=get_args(Kind), default="openai")
    parser.add_argument("--model", action="append", metavar="NAME", help="a model it serves; may be repeated")
    parser.add_argument("--tokens", type=int, default=16, help="content chunks of an answer (default: %(default)s)")
    parser.add_argument("--dimensions", type=int, default=384, help="of embeddings (default: %(default)s)")
    parser.add_argument("--context-length", type=int, default=8192, metavar="TOKENS")
    parser.add_argument("--only", choices=get_args(Ability), help="serve only this; the default is both")
    parser.add_argument("--api-key", default="", help="ask clients for this bearer token")
    parser.add_argument("--parallel", type=int, default=0, help="requests at once, others wait (default: no limit)")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="Ollama: what loading a model takes")
    parser.add_argument(
        "--behave",
        action="append",
        default=[],
        metavar="RULE",
        help="a behaviour from the start: 'die chunk:3 rst', or a JSON rule with do, next, every, path, header, body",
    )
    parser.add_argument("--list", action="store_true", help="print all behaviours and leave")
    return parser.parse_args(argv)


def backend_of(options: argparse.Namespace) -> Backend:
    """The backend that the command line describes."""
    return Backend(
        kind=options.kind,
        models=options.model or ["test-model"],
        tokens=options.tokens,
        dimensions=options.dimensions,
        context_length=options.context_length,
        abilities=(options.only,) if options.only else get_args(Ability),
        api_key=options.api_key,
        load_seconds=options.load_seconds,
        parallel=options.parallel,
    )


def rule_of(text: str) -> Rule:
    """A rule out of a whole JSON rule, or of a behaviour alone; raises TroubleSpecError or msgspec.ValidationError."""
    with contextlib.suppress(msgspec.DecodeError):
        value = msgspec.json.decode(text)
        if isinstance(value, dict) and "do" in value:
            return msgspec.convert(value, Rule)
    return Rule(do=text)


async def serve(options: argparse.Namespace, lead: Connection | None) -> None:
    """Run until SIGTERM, SIGINT or the end of the lead; say the ports there, or else on standard output."""
    server = Server(backend_of(options), options.host, options.port)
    for text in options.behave:
        server.site.rules.add(rule_of(text))
    admin_site = AdminSite(server)
    admin = Listener(options.host, options.admin_port, lambda: HttpConnection(admin_site))
    await server.start()
    await admin.become("open")
    told = _told_to_stop(lead)
    ports = {"port": server.listener.port, "admin": admin.port}
    if lead:
        lead.send(ports)
    else:
        print(json.dumps(ports), flush=True)
    gc.freeze()  # what is there now lives for ever: full collections need not look at it
    await told.wait()


def _told_to_stop(lead: Connection | None) -> asyncio.Event:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if lead:
        loop.add_reader(lead.fileno(), told.set)
    return told


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop where it is installed: twice as fast, the same behaviour."""
    return uvloop.new_event_loop() if uvloop else asyncio.new_event_loop()


def run(options: argparse.Namespace, lead: Connection | None = None) -> int:
    """Serve; gives the exit code. `lead` is held by who has forked this process, and is closed when that ends."""
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(serve(options, lead))
    except (TroubleSpecError, OSError, msgspec.ValidationError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    """The program."""
    options = arguments()
    if not options.list:
        return run(options)
    for name in sorted(CATALOGUE):
        entry = catalogue_entry(name)
        print(f"{name} {json.dumps(entry['fields'])}\n    {entry['about']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
