"""What a routing decision takes: `python -m bench.routing` asks Citadel's router with 200 servers and 1,000 models.

Each request needs tools and some context, belongs to a conversation and comes by a certain endpoint; half of the models
are of a class with servers of its own and with backup requests. What the router keeps of a model's candidates for a
second is dropped before each decision: with so many models most of those that count for the p99 are worked out anew.
An answer comes before each. Processor time is counted, so other programs show in it only by what they drive out of the
caches.
"""

import gc
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from bench.processes import PYTHON, ROOT

SERVERS, MODELS = 200, 1_000
HOLDERS = (10, SERVERS)
"""Servers of each model: as in a fleet of so many models, and all of them."""
DECISIONS = 4_000
ANSWERS = 25
"""That each server has given for each model, so that it is known how fast it is."""


class Decisions(msgspec.Struct, frozen=True):
    """Microseconds for one decision over models that so many servers hold, by a strategy."""

    holders: int
    strategy: str
    p50: float
    p99: float


def measure() -> list[Decisions]:
    """Measure in a process of its own, on the cores of this one."""
    done = subprocess.run([PYTHON, "-m", "bench.routing"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Routing could not be measured:\n{done.stderr.decode()}")
    return msgspec.json.decode(done.stdout, type=list[Decisions])


def main() -> None:
    """Print what is found, as JSON."""
    nowhere = {"CITADEL_HOME": os.devnull, "CITADEL_SECURITY__SECRET_KEY": secrets.token_hex(32)}
    os.environ |= {"DJANGO_SETTINGS_MODULE": "citadel.settings", "DATABASE_URL": "postgresql://n@n/n", **nowhere}
    import django

    django.setup()
    sys.stdout.buffer.write(msgspec.json.encode([found for holders in HOLDERS for found in _decide(holders)]))


def _decide(holders: int) -> Iterator[Decisions]:
    from apps.orchestration.routing.strategies import STRATEGIES

    routers, models = _fleet(holders, list(STRATEGIES))
    gc.collect()
    gc.freeze()  # as a web worker does after its start
    gc.set_threshold(100_000, 50, 1_000)
    for strategy, router in routers.items():
        for model in models:
            router.plan(model)
        taken = sorted(_time(router, models[number % len(models)], number) for number in range(DECISIONS))
        yield Decisions(holders, strategy, taken[DECISIONS // 2], taken[DECISIONS * 99 // 100])


def _time(router: Any, model: Any, number: int) -> float:
    """Microseconds for a request of another conversation, after one has been answered."""
    from apps.orchestration.health.pace import Key
    from apps.orchestration.routing.plan import Needs

    server = model.servers[number % len(model.servers)]
    router.paces[Key(model.name, server.server_id, streams=False)].answered(0.05, time.monotonic())
    needs = Needs(frozenset({"tools"}), 500, hash((number, 1)), endpoint="chat/completions")
    router._known.clear()
    begin = time.thread_time_ns()
    router.plan(model, needs)
    return (time.thread_time_ns() - begin) / 1e3


def _fleet(holders: int, strategies: Sequence[str]) -> tuple[dict[str, Any], Sequence[Any]]:
    """A router for each strategy, and the models of a fleet in which some servers are out, degraded, loaded or just
    back.
    """
    from apps.orchestration.fleet import Server
    from apps.orchestration.health.conditions import Load, Record
    from apps.orchestration.health.pace import Key, Paces
    from apps.orchestration.health.passive import Standings
    from apps.orchestration.routing.router import Router
    from citadel.sections import RoutingSection

    drawn, now = random.Random(1), time.monotonic()
    servers = [Server(f"s{n:03}", f"http://s{n:03}", "openai", weight=1 + n % 3) for n in range(SERVERS)]
    count = min(MODELS, 10_000 // holders)  # each pace takes a kilobyte
    held = (sorted(drawn.sample(servers, holders), key=lambda server: server.server_id) for _ in range(count))
    models = [_model(n, chosen) for n, chosen in enumerate(held)]
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
    for server in servers[::20]:
        standings.failed(server.server_id, now, "refused")
    records = {server.server_id: Record(status="degraded") for server in servers[1::20]}
    records |= {server.server_id: Record(returned=int(now * 1000) - 5_000) for server in servers[2::20]}
    loads = {server.server_id: Load(cpu=drawn.random(), in_flight=drawn.randrange(9)) for server in servers}
    homes = SimpleNamespace(known={}, settled=lambda _model: {}, remember=lambda *_where: None)
    seen: Any = SimpleNamespace(number=0, records=records, loads=loads, clock_ms=0.0, homes=homes)
    paces = Paces()
    for model in models:
        for server in model.servers:
            pace = paces[Key(model.name, server.server_id, streams=False)]
            for _ in range(ANSWERS):
                pace.answered(drawn.random() / 10, now)
    routers = {name: Router(standings, seen, RoutingSection(strategy=name)) for name in strategies}
    for router in routers.values():
        router.paces = paces
    return routers, models


def _model(number: int, holders: Sequence[Any]) -> Any:
    """Every second one belongs to a class that prefers half of its servers and asks a second one where one is slow;
    every tenth server can't do what is asked for.
    """
    from apps.orchestration.fleet import Holding, Model, ModelClass

    able, unable = Holding(frozenset({"chat", "tools"}), 8_192), Holding(frozenset({"chat"}), 8_192)
    holdings = {one.server_id: unable if place % 10 == 9 else able for place, one in enumerate(holders)}
    own = frozenset(one.server_id for one in holders[::2])
    model_class = ModelClass("lightweight", own, hedge_ms=0) if number % 2 else None
    return Model(f"m{number}", tuple(holders), holdings=holdings, model_class=model_class)


if __name__ == "__main__":
    main()
