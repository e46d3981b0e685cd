"""Workloads: a caller has a server chosen for work to come, and a place held there until the work is sent.

What is kept of each, and that a place is counted exactly, is `limits/workloads.lua`. Any worker knows every workload.
One whose server goes out is put on another.
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import msgspec

from apps.gateway.inference.names import no_server
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.scripts import script
from apps.gateway.limits.waiting import Place
from apps.orchestration.fleet import EMPTY, Fleet, Model, Server
from apps.orchestration.health.pace import Key
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.explain import outlined
from apps.orchestration.routing.plan import Plan
from apps.orchestration.routing.router import Router
from citadel.background import Background
from citadel.caller import Caller
from citadel.errors import Conflict, LimitExceeded, NotFound, Unavailable
from citadel.redis import Argument, RedisError
from citadel.sections import RoutingSection

SCRIPT = script("workloads.lua")
HELD, TAKEN, FULL, TOO_MANY = range(4)
SHAPE = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
"""Of a workload's id."""
MOST = 1000
"""Workloads that a key without a limit on requests at once may hold."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether a workload's server is out."""
MOVED_AT_ONCE = 100
"""Of one server and model, between two such looks of a worker."""

_is_id = re.compile(SHAPE.encode()).fullmatch


class Work(NamedTuple):
    """What a place is asked for."""

    request_id: str
    caller: Caller
    model: Model
    priority: int
    complexity: float
    """How many times as long as usual it takes."""
    preferred: Sequence[str] = ()
    """Ids of servers, the best first."""


class Workload(NamedTuple):
    """A place that is held, or was until now. Times in milliseconds since the epoch, by Redis's clock."""

    request_id: str
    server: str
    holds: bool
    """Whether it is one of so many; not where the server has no limit."""
    model: str
    priority: int
    ends: int
    done: int
    """When the work would be done, begun at once."""
    decision: Mapping[str, Any]

    @classmethod
    def of(cls, request_id: str, record: Sequence[bytes]) -> Self:
        """As the script tells it."""
        server, held, model, priority, ends, done, told = record
        return cls(
            request_id,
            server.decode(),
            held == b"1",
            model.decode(),
            int(priority),
            int(ends),
            int(done),
            msgspec.json.decode(told),
        )

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.server, self.holds)


class Workloads:
    """This worker's access to all workloads."""

    def __init__(self, limiter: Limiter, router: Router, standings: Standings, routing: RoutingSection):
        self._limiter = limiter
        self._router = router
        self._standings = standings
        self._lease = int(routing.workload_lease * 1000)
        self._fleet = EMPTY
        self._background = Background("workloads")

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        self._fleet = fleet

    async def distribute(self, work: Work) -> Workload:
        """Holds a place on the first server that has one; asked again, tells of the one that is held.

        Raises Conflict where it is for another model, LimitExceeded, and Unavailable where there is no place.
        """
        plan = self._router.plan(work.model)
        plan = plan._replace(order=with_first(plan.order, work.preferred))
        told = outlined(plan, work.model)
        if preferred := [name for name in work.preferred if any(name == one.server_id for one in plan.order)]:
            told["preferred"] = preferred
        caller, quotas = work.caller, self._limiter.at_once(work.caller, work.model)
        verdict, *more = await self._ask(
            "hold",
            work.request_id,
            caller.key_id,
            work.model.name,
            work.priority,
            work.complexity,
            0 if caller.limits.concurrent else MOST,
            self._lease,
            msgspec.json.encode(told),
            len(quotas),
            *(part for quota in quotas for part in (quota.holder, quota.concurrent)),
            *self._places(work.model, plan.order, work.complexity),
        )
        if verdict == HELD:
            return Workload.of(work.request_id, more)
        if verdict == TAKEN:
            message = f"You hold a workload '{work.request_id}' for another model: give it back, or choose another id."
            raise Conflict(message, param="request_id")
        if verdict == TOO_MANY:
            which, retry_ms = more
            message = f"This key holds {MOST} workloads, which is as many as it may."
            if which >= 0:
                whose = quotas[which].whose
                message = f"{whose} has as many requests running and workloads held as it may have at once."
            raise LimitExceeded(message, code="workload_limit_exceeded", retry_after=retry_ms / 1000)
        raise self._no_place(work.model, plan)

    async def release(self, request_id: str, key_id: str, model: str = "") -> Workload:
        """Gives a place back that this key holds, for this model if one is named; NotFound."""
        record = await self._ask("release", request_id, key_id, model)
        if not record:
            raise NotFound(f"No workload '{request_id[:128]}' is held.", param="request_id")
        return Workload.of(request_id, record)

    async def holders(self, request_id: str) -> list[str]:
        """Ids of the keys that hold a workload of that id, in order."""
        return sorted(key_id.decode() for key_id in await self._ask("holders", request_id))

    async def use(self, asked: bytes, caller: Caller, model: Model) -> Workload | None:
        """Makes the place that is held under an id this worker's own; None where this caller holds none for the model.

        Whoever gets one leaves it at the limiter. If he is cancelled before, it is left here.
        """
        if not _is_id(asked):
            return None
        task = asyncio.create_task(self._take_over(asked.decode(), caller, model))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._background.begin(self._leave_what_comes(task))
            raise

    def give_up(self, asked: bytes, caller: Caller, model: Model) -> None:
        """Releases what this caller may hold under an id for the model. Waits for nothing."""
        if _is_id(asked):
            self._background.begin(self._give_up(asked.decode(), caller, model))

    def start(self) -> None:
        """Begins to look after workloads whose server is out."""
        self._background.begin(self._look_after())

    async def stop(self) -> None:
        """Looks after them no more."""
        await self._background.stop()

    async def move_on(self) -> None:
        """Puts workloads on servers that are out, or hold the model no more, on others, as far as there are places."""
        for shelf in await self._script("shelves"):
            server_id, _, name = shelf.decode().partition(" ")
            model = self._fleet.models.get(name)
            if model is not None and self._is_out(server_id, model):
                await self._move_off(server_id, model)

    async def _look_after(self) -> None:
        while True:
            with contextlib.suppress(RedisError):
                await self.move_on()
            await asyncio.sleep(LOOK_EVERY)

    async def _move_off(self, server_id: str, model: Model) -> None:
        """The first that finds no place ends it: the others, for the same model, would find none either."""
        flat = await self._script("stranded", server_id, model.name, MOVED_AT_ONCE)
        for name, complexity in zip(flat[::2], flat[1::2], strict=True):
            plan = self._router.plan(model)
            order = [one for one in plan.order if one.server_id != server_id]
            told = msgspec.json.encode({**outlined(plan, model), "moved_from": server_id})
            places = self._places(model, order, float(complexity))
            if not await self._script("move", name, server_id, told, *places):
                break

    async def _take_over(self, request_id: str, caller: Caller, model: Model) -> Workload | None:
        async with self._limiter.under_its_name() as worker:
            try:
                record = await self._script("use", request_id, caller.key_id, model.name, worker)
            except RedisError:
                self._limiter.doubt()
                return None
            if not record:
                return None
            workload = Workload.of(request_id, record)
            self._limiter.took_over(workload.place)
            return workload

    async def _leave_what_comes(self, task: "asyncio.Task[Workload | None]") -> None:
        if workload := await task:
            self._limiter.leave(workload.place)

    async def _give_up(self, request_id: str, caller: Caller, model: Model) -> None:
        with contextlib.suppress(NotFound, Unavailable):
            await self.release(request_id, caller.key_id, model.name)

    async def _ask(self, *arguments: Argument) -> Any:
        try:
            return await self._script(*arguments)
        except RedisError:
            raise Unavailable("Places can't be held at the moment.", retry_after=1) from None

    async def _script(self, *arguments: Argument) -> Any:
        return await self._limiter.redis.script(SCRIPT, arguments)

    def _is_out(self, server_id: str, model: Model) -> bool:
        server = self._fleet.servers.get(server_id)
        held = server is not None and server.state == "active" and server_id in model.holdings
        return not held or not self._standings.in_rotation(server_id)

    def _places(self, model: Model, order: Sequence[Server], complexity: float) -> list[Argument]:
        """The servers as the script takes them."""
        flat: list[Argument] = [len(order)]
        for server in order:
            lasts = self._usual(model.name, server.server_id) * complexity
            flat += (server.server_id, server.max_concurrent, int(lasts * 1000))
        return flat

    def _usual(self, model: str, server_id: str) -> float:
        """Seconds that a whole answer of this model usually takes there, as far as this worker knows."""
        pace = self._router.paces.find(Key(model, server_id, False))
        usual = pace and (pace.quantile(0.5) or pace.average)
        return usual or self._router.usual_hold(model)

    def _no_place(self, model: Model, plan: Plan) -> Unavailable:
        if not plan.order:
            return no_server(model.name, plan.retry_after)
        message = "All servers of this model are busy."
        return Unavailable(message, code="no_place", retry_after=self._router.usual_hold(model.name))


def with_first(order: Sequence[Server], preferred: Sequence[str]) -> tuple[Server, ...]:
    """The servers, those that are preferred before the others."""
    ranks = {name: rank for rank, name in reversed(list(enumerate(preferred)))}
    return tuple(sorted(order, key=lambda server: ranks.get(server.server_id, len(preferred))))


def moment(milliseconds: int) -> str:
    """As answers tell it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
