"""The processes behind the web workers' back: Celery's worker, the prober with a queue of its own, and the beat."""

import sys
from collections.abc import Sequence

from citadel.embedded import demo
from citadel.embedded.home import Home
from citadel.embedded.ready import by_sign
from citadel.embedded.supervisor import Child

WORKER, PROBER, BEAT = "worker", "prober", "beat"
CELERY = ("-m", "celery", "--app", "citadel.celery", "--quiet")
# They would talk to all workers of the broker without a need; threads, since their work is waiting.
QUIET = ("--pool", "threads", "--without-gossip", "--without-mingle", "--without-heartbeat")


def children(home: Home) -> tuple[Child, ...]:
    """All three, for the supervisor."""
    return (
        _child(home, PROBER, ("worker", *_node(home, PROBER), "--queues", "probes", "--concurrency", "2", *QUIET)),
        _child(home, WORKER, ("worker", *_node(home, WORKER), "--queues", "work", "--concurrency", "4", *QUIET)),
        _child(home, BEAT, ("beat",)),
    )


def _node(home: Home, name: str) -> tuple[str, str]:
    """A name that no worker of another home on the same broker has."""
    return "--hostname", f"{name}@{demo.mark(home)}"


def _child(home: Home, name: str, arguments: Sequence[str]) -> Child:
    command, works = by_sign(home, name, [sys.executable, *CELERY, *arguments])
    return Child(name=name, command=command, ready=works, start_timeout=60.0, stop_timeout=15.0, tier=2)
