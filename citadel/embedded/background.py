"""The processes behind the web workers' back: Celery's worker, the prober with a queue of its own, and the beat."""

import sys
from collections.abc import Sequence

from citadel.embedded import demo, ready
from citadel.embedded.home import Home
from citadel.embedded.supervisor import Child

WORKER, PROBER, BEAT = "worker", "prober", "beat"
CELERY = ("-m", "celery", "--app", "citadel.celery", "--quiet")
# They would talk to all workers of the broker without a need; threads, since their work is waiting.
QUIET = ("--pool", "threads", "--without-gossip", "--without-mingle", "--without-heartbeat")


def children(home: Home, redis_url: str) -> tuple[Child, ...]:
    """All three, for the supervisor."""
    prober = ("worker", *_node(home, PROBER), "--queues", "probes", "--concurrency", "2", *QUIET)
    worker = ("worker", *_node(home, WORKER), "--queues", "work,discovery", "--concurrency", "4", *QUIET)
    of_each = ((PROBER, prober), (WORKER, worker), (BEAT, ("beat",)))
    return tuple(_child(home, name, arguments, redis_url) for name, arguments in of_each)


def _node(home: Home, name: str) -> tuple[str, str]:
    """A name that no worker of another home on the same broker has."""
    return "--hostname", f"{name}@{demo.mark(home)}"


def _child(home: Home, name: str, arguments: Sequence[str], redis_url: str) -> Child:
    command, works = ready.by_sign(home, name, [sys.executable, *CELERY, *arguments])

    async def works_or_waits() -> str | None:
        """Without Redis it says nothing, and waits for it by itself."""
        trouble = await works()
        return trouble if trouble and await ready.redis_server(redis_url) is None else None

    return Child(name=name, command=command, ready=works_or_waits, start_timeout=60.0, stop_timeout=15.0, tier=2)
