"""``python -m tests.fleet``: start one backend that can be told to misbehave."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import get_args

import msgspec

from .admin import AdminSite, catalogue_entry
from .backend.config import Ability, Backend, Kind
from .connection import Connection
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
    parser.add_argument("--end-with-stdin", action="store_true", help="leave when standard input, a pipe, is closed")
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


async def serve(options: argparse.Namespace) -> None:
    """Run until SIGTERM, SIGINT or (if asked for) the end of standard input."""
    server = Server(backend_of(options), options.host, options.port)
    for text in options.behave:
        server.site.rules.add(rule_of(text))
    admin_site = AdminSite(server)
    admin = Listener(options.host, options.admin_port, lambda: Connection(admin_site))
    await server.start()
    await admin.become("open")
    print(json.dumps({"port": server.listener.port, "admin": admin.port}), flush=True)
    await _until_told_to_stop(options.end_with_stdin)


async def _until_told_to_stop(with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 4096) else told.set())
    gc.freeze()  # what is there now lives for ever: full collections need not look at it
    await told.wait()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop where it is installed: twice as fast, the same behaviour."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def main() -> int:
    """The program."""
    options = arguments()
    if options.list:
        for name in sorted(CATALOGUE):
            entry = catalogue_entry(name)
            print(f"{name} {json.dumps(entry['fields'])}\n    {entry['about']}")
        return 0
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(serve(options))
    except (TroubleSpecError, OSError, msgspec.ValidationError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
