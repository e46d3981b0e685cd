"""The registry's API: servers register, say that they live, are listed, drained and taken out."""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import structlog
from django.core.exceptions import ValidationError
from django.db import DatabaseError
from msgspec import Meta, Struct
from ninja import Router

from apps.orchestration import registry
from apps.orchestration.catching_up import caught_up, check_id, in_registry, on_server, unknown_server
from apps.orchestration.discovery import DiscoveryFailed, MetItself, ask, place_of
from apps.orchestration.fleet import CALLED
from apps.orchestration.health.examiner import examine_now
from apps.orchestration.listing import Listed, Row, ServerHealth, ServerList, health_of, listed, whole
from apps.orchestration.models import Server
from apps.orchestration.registration import Body, Heartbeat, Registration
from apps.orchestration.requests import FleetRequest, Worker
from citadel.addresses import AddressRefused, NoAddress, of_fleet
from citadel.answer import Answer, json_answer
from citadel.caller import Caller
from citadel.database import in_thread
from citadel.decoding import decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, TooLarge, TooSlow, Unavailable
from citadel.permissions import OPERATE_FLEET, REGISTER_SERVERS, SEE_FLEET, require, require_somewhere
from citadel.redis import RedisError
from citadel.sections import Config

log = structlog.get_logger("citadel.registry")

router = Router(tags=["Servers"])
older_router = Router(tags=["Servers"])
"""The same by older names, under /v1."""

ASKED_AT_ONCE = 20
"""Servers that one worker asks for their models at the same time."""
MOST_WAITING = 2000
"""Servers that wait for that; of more the probes find the models."""

SERVERS, HEARTBEAT = "/orchestration/servers/", "/heartbeat"
REGISTER = frozenset({"/orchestration/servers/register", "/v1/servers"})
BODY_REFUSED = (BadRequest, TooSlow, TooLarge)
"""What a body may be refused with, wherever there is one."""

_discoveries: dict[str, "asyncio.Task[None]"] = {}
_again: set[str] = set()
"""Servers that have registered anew since they are being asked."""
_places = asyncio.Semaphore(ASKED_AT_ONCE)


class Registered(Struct, omit_defaults=True):
    """A registration's answer."""

    status: str
    server_id: str
    state: str
    url: str
    """Where Citadel calls it."""
    kind: str | None
    models: list[str]
    heartbeat_interval: float
    ignored: list[str] = []
    """Fields of the body that say nothing here, such as misspelt ones: the first twenty."""


class Heard(Struct):
    """A heartbeat's answer."""

    status: str
    server_id: str
    state: str
    url: str
    """Where Citadel calls it."""
    heartbeat_interval: float


class Known(NamedTuple):
    """What a heartbeat asks of a server's entry."""

    state: str
    registered_by: str
    url: str


class Done(Struct):
    """What has become of a server."""

    status: str
    server_id: str
    state: str


class Expected(Struct):
    """What an operator takes a server for whose state he sets."""

    url: Annotated[str, Meta(max_length=512)] = ""
    """Its address, as the list tells it: at another one it stays as it is. Empty: wherever it is."""


class Gone(Struct):
    """A server that is no longer in the registry."""

    status: str
    server_id: str


@older_router.post("/servers", include_in_schema=False)
@router.post("/register", openapi_extra=answers(Registered, *BODY_REFUSED, Conflict, Unavailable, body=Body))
async def register_server(request: FleetRequest) -> Answer:
    """Puts a server into the registry or brings its entry up to date; what it is and holds is found by asking it."""
    caller = request.auth
    require_somewhere(caller, REGISTER_SERVERS)
    config = request.runtime.config
    wanted = Registration.read(request.body)
    require(caller, REGISTER_SERVERS, server=wanted.server_id)
    await _check_address(wanted, config)
    entry = await in_registry(registry.register, wanted, caller, approval=config.registry.approval)
    await caught_up(request.runtime)
    with contextlib.suppress(RedisError):  # then its next heartbeat tells that it lives
        await request.runtime.board.loads.renew(entry.server.server_id)
    _discover_soon(entry.server, config)
    server = entry.server
    return json_answer(
        Registered(
            "registered",
            server.server_id,
            server.state,
            server.url,
            server.kind or None,
            entry.models,
            config.health.heartbeat_interval,
            wanted.ignored,
        )
    )


@older_router.get("/servers", include_in_schema=False)
@router.get("/list", openapi_extra=answers(ServerList, Unavailable))
async def list_servers(request: FleetRequest) -> Answer:
    """All servers of the registry, and how each of them is."""
    require(request.auth, SEE_FLEET)
    rows = await _rows(request.runtime)
    return json_answer(whole(rows, await request.runtime.watch.known_now(), datetime.now(UTC)))


@older_router.get("/servers/{server_id}", include_in_schema=False)
@router.get("/{server_id}", openapi_extra=answers(Listed, NotFound, Unavailable))
async def server(request: FleetRequest, server_id: str) -> Answer:
    """One server of the registry, and how it is."""
    require(request.auth, SEE_FLEET)
    return json_answer(listed(await _row(request.runtime, server_id), await request.runtime.watch.known_now()))


@router.get("/{server_id}/health", openapi_extra=answers(ServerHealth, BadRequest, NotFound, Conflict, Unavailable))
async def server_health(request: FleetRequest, server_id: str) -> Answer:
    """How one server is: by its probes, its traffic and what it tells itself. `?probe=true` probes it first, which who
    operates the fleet may.
    """
    require(request.auth, SEE_FLEET)
    if _wants_probe(request):
        require(request.auth, OPERATE_FLEET, server=server_id)  # what it finds decides where requests go
        await _probe(request.runtime, server_id)
    return json_answer(health_of(await _row(request.runtime, server_id), await request.runtime.watch.known_now()))


@router.post(
    "/{server_id}/heartbeat",
    openapi_extra=answers(Heard, *BODY_REFUSED, NotFound, Conflict, Unavailable, body=Heartbeat, required=False),
)
async def heartbeat(request: FleetRequest, server_id: str) -> Answer:
    """Takes a server's word that it lives, and what it says of its load. A 404 asks it to register again; a 409 tells
    that it is not at the `url` that the body may name: another one has registered by its id.
    """
    caller, runtime = request.auth, request.runtime
    require(caller, REGISTER_SERVERS, server=server_id)
    told = decode(request.body, Heartbeat)
    known = await _known(runtime, server_id)
    registry.check_owner(server_id, known.registered_by, caller)
    if told.url and told.url != known.url:  # unless this worker has not heard yet of its move
        known = await on_server(_look_up, server_id)
        if told.url != known.url:
            raise _moved(server_id, known.url)
    try:
        await runtime.board.loads.heartbeat(server_id, told.load)
    except RedisError:
        raise Unavailable("Heartbeats can't be kept at the moment.", retry_after=1) from None
    return json_answer(Heard("ok", server_id, known.state, known.url, runtime.config.health.heartbeat_interval))


def heartbeat_from(path: str) -> str:
    """The id of the server whose heartbeat is posted to this address; empty where it is another address."""
    if not (path.startswith(SERVERS) and path.endswith(HEARTBEAT)):
        return ""
    server_id = path[len(SERVERS) : -len(HEARTBEAT)]
    return "" if "/" in server_id else server_id


def is_of_server(method: str | None, path: str) -> bool:
    """Whether such a request registers a server, takes one out or is its heartbeat."""
    if method == "POST":
        return path in REGISTER or bool(heartbeat_from(path))
    return method == "DELETE" and path.startswith(SERVERS)


@router.delete("/{server_id}", openapi_extra=answers(Gone, NotFound, Unavailable))
async def deregister_server(request: FleetRequest, server_id: str) -> Answer:
    """Takes a server out of the registry: whoever registered it may, and operators."""
    caller = request.auth
    require(caller, REGISTER_SERVERS, server=server_id)
    registry.check_remover(server_id, (await _known(request.runtime, server_id)).registered_by, caller)
    await on_server(registry.remove, server_id, _name(caller))
    await caught_up(request.runtime)
    return json_answer(Gone("deregistered", server_id))


_OF_STATES = answers(Done, *BODY_REFUSED, NotFound, Conflict, Unavailable, body=Expected, required=False)


@router.post("/{server_id}/drain", openapi_extra=_OF_STATES)
async def drain_server(request: FleetRequest, server_id: str) -> Answer:
    """Lets what runs on a server end and sends nothing new there; a 409 where it is not at the `url` that the body may
    name.
    """
    return await _set_state(request, server_id, Server.State.DRAINING)


@router.post("/{server_id}/enable", openapi_extra=_OF_STATES)
async def enable_server(request: FleetRequest, server_id: str) -> Answer:
    """Gives traffic to a server that was drained, disabled or waits for approval; a 409 where it is not at the `url`
    that the body may name.
    """
    return await _set_state(request, server_id, Server.State.ACTIVE)


@router.post("/{server_id}/disable", openapi_extra=_OF_STATES)
async def disable_server(request: FleetRequest, server_id: str) -> Answer:
    """Takes a server out of traffic and of the probes until it is enabled again."""
    return await _set_state(request, server_id, Server.State.DISABLED)


async def _check_address(wanted: Registration, config: Config) -> None:
    """BadRequest where Citadel may not call the server's address. A name that leads nowhere may yet do so."""
    try:
        await of_fleet(config).resolve(*wanted.place)
    except NoAddress:
        return
    except AddressRefused as refused:
        message = f"Invalid value for 'hostname': {refused}; see security.fleet_networks."
        raise BadRequest(message, param="hostname") from None


def _wants_probe(request: FleetRequest) -> bool:
    said = request.GET.get("probe", "false").lower()
    if said not in ("true", "false", "1", "0"):
        raise BadRequest("Invalid value for 'probe': it is true or false.", param="probe")
    return said in ("true", "1")


async def _probe(runtime: Worker, server_id: str) -> None:
    await _row(runtime, server_id)
    server = runtime.fleet.servers.get(server_id)
    if server is None:  # this worker could not read yet that it has come, or just has that it is gone
        raise Unavailable("This server is not known here yet.", retry_after=1)
    if server.state not in CALLED:
        raise Conflict(f"This server is {server.state}: it is called once it is enabled.", param="server_id")
    try:
        await examine_now(server, runtime.config, runtime.board, runtime.pool, lambda: runtime.fleet)
    except RedisError:
        raise Unavailable("What the probe found can't be kept at the moment.", retry_after=1) from None


async def _set_state(request: FleetRequest, server_id: str, state: Server.State) -> Answer:
    require(request.auth, OPERATE_FLEET, server=server_id)
    url = decode(request.body, Expected).url
    server, ask = await on_server(registry.set_state, server_id, state, _name(request.auth), url)
    await caught_up(request.runtime)
    if ask:
        _discover_soon(server, request.runtime.config)
    return json_answer(Done(server.state, server_id, server.state))


async def _rows(runtime: Worker, server_id: str | None = None) -> list[Row]:
    """The registry's rows, none of which this worker does not know when the client gets to see it."""
    rows = await in_registry(registry.rows, server_id)
    await caught_up(runtime)
    return rows


async def _row(runtime: Worker, server_id: str) -> Row:
    check_id(server_id)
    found = await _rows(runtime, server_id)
    if not found:
        raise unknown_server(server_id)
    return found[0]


async def _known(runtime: Worker, server_id: str) -> Known:
    """What the snapshot has of a server, without a question to the database, unless the server is newer than that."""
    if server := runtime.fleet.servers.get(server_id):
        return Known(server.state, server.registered_by, server.url)
    return await on_server(_look_up, server_id)


def _look_up(server_id: str) -> Known:
    row = Server.objects.get(server_id=server_id)
    return Known(row.state, row.registered_by, row.url)


def _moved(server_id: str, url: str) -> Conflict:
    """What a server is told whose entry is another one's by now."""
    message = f"The server '{server_id}' is at {url}: another one has registered by this id, and each needs its own."
    return Conflict(message, code="server_has_moved", param="url")


def _discover_soon(server: Server, config: Config) -> None:
    """Has a server asked for its models, in the background and once at a time; again when it is just being asked,
    since that may be somewhere else. Not one that is not to be called: nobody may have approved its address.
    """
    name = server.server_id
    if server.state not in CALLED:
        return
    if name in _discoveries:
        _again.add(name)
    elif len(_discoveries) < MOST_WAITING:
        _discoveries[name] = task = asyncio.create_task(_discover_all(name, config), name=f"discover {name}")
        task.add_done_callback(lambda _task: _discoveries.pop(name, None))


async def _discover_all(server_id: str, config: Config) -> None:
    """Until nobody has asked for it again."""
    while True:
        _again.discard(server_id)
        await _discover(server_id, config)
        if server_id not in _again:
            return


async def _discover(server_id: str, config: Config) -> None:
    """As `registry.discover_and_keep`, holding a thread only while the database is asked."""
    try:
        async with _places:
            server = await in_thread(Server.objects.get, server_id=server_id)
            if server.state not in CALLED:
                return
            place = place_of(server)
            try:
                found = await ask(place, config)
            except MetItself:
                await in_thread(registry.shut_out, server, place)
            else:
                await in_thread(registry.keep_found, server, place, found)
    except (DiscoveryFailed, ValidationError, Server.DoesNotExist, DatabaseError) as error:
        log.info("models_not_found", server=server_id, reason=str(error) or type(error).__name__)


def _name(caller: Caller) -> str:
    """Who did it, as events tell it."""
    return f"key {caller.key_id}"
