"""`/management`: what operators see of models, servers and use, and what they do with models and the cache."""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from ninja import Router
from pydantic import Field

from apps.audit.statistics import FILTERS, Statistics, statistics
from apps.gateway.inference.caching import clearings
from apps.gateway.requests import GatewayRequest
from apps.orchestration.fleet import CALLED, Fleet, Model, Server
from apps.orchestration.health.report import ServerReport, Summary, summary
from apps.orchestration.health_api import report
from apps.orchestration.preload import Preloaded, preload
from citadel.answer import Answer, json_answer
from citadel.database import in_thread
from citadel.decoding import NO_NUL, decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NameCursor, Page
from citadel.permissions import OPERATE_FLEET, SEE_FLEET, require, require_somewhere
from citadel.redis import RedisError

router = Router(tags=["Management"])

LONGEST_PERIOD = timedelta(days=366)
USUAL_PERIOD = "24h"
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PERIOD = re.compile(r"([0-9]{1,9})([smhd])")
_alone = asyncio.Semaphore(1)
"""One question about statistics at a time in each worker: records are written over the same connections."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=NO_NUL)]
Asked = Annotated[str, Field(max_length=255, pattern=NO_NUL)]
Period = Annotated[
    str, Field(pattern="^([1-9][0-9]{0,6}s|[1-9][0-9]{0,4}m|[1-9][0-9]{0,2}h|[1-9][0-9]?d|[12][0-9]{2}d)$")
]

Yes = Annotated[bool, msgspec.Meta(extra_json_schema={"const": True})]
Duration = Annotated[str, msgspec.Meta(pattern="^(-1|[1-9][0-9]{0,5}[smh])$")]
Seconds = Annotated[int, msgspec.Meta(ge=-1, le=999_999, extra_json_schema={"not": {"const": 0}})]


class OnServer(msgspec.Struct):
    """A model on one server. `loaded` is null where the server does not tell."""

    server_id: str
    state: str
    health_status: str
    loaded: bool | None
    context_length: int | None
    capabilities: list[str] | None


class ModelRow(msgspec.Struct):
    """A model. `loaded` says whether any server has it in memory."""

    id: str
    model_class: str | None = msgspec.field(name="class")
    loaded: bool | None
    aliases: list[str]
    servers: list[OnServer]


class ModelRows(msgspec.Struct):
    """A page of them."""

    data: list[ModelRow]
    next: str | None


class ServerRows(msgspec.Struct):
    """A page of servers, and the numbers of all."""

    summary: Summary
    data: list[ServerReport]
    next: str | None


class Preloading(msgspec.Struct, forbid_unknown_fields=True):
    """Which model, on which servers (all that hold it unless named), for how long: 30m, seconds, or -1 for ever."""

    model: Name
    servers: Annotated[list[Name], msgspec.Meta(max_length=1000)] = []
    keep_alive: Duration | Seconds = "30m"


class PreloadedModel(msgspec.Struct):
    """What became of it."""

    model: str
    servers: list[Preloaded]


class Clearing(msgspec.Struct, forbid_unknown_fields=True):
    """What to clear of the cache: what a team has, of a model or a class of models; all where nothing is named, which
    `all` may say.
    """

    team: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=NO_NUL)] | None = None
    model: Name | None = None
    model_class: Name | None = msgspec.field(name="class", default=None)
    everything: Yes | None = msgspec.field(name="all", default=None)


class Cleared(msgspec.Struct):
    """What was cleared: null is all. This worker finds nothing of it any more, the others within a second."""

    status: str
    team: str | None
    models: list[str] | None


@router.get("/models/list", openapi_extra=answers(ModelRows, BadRequest))
async def management_models(request: GatewayRequest, limit: Limit = USUAL, cursor: NameCursor | None = None) -> Answer:
    """All models: their class, their servers, and whether they are in memory there."""
    require(request.auth, SEE_FLEET)
    page = Page.asked(limit, cursor)
    fleet, rows = request.runtime.fleet, {row.server_id: row for row in report(request.runtime)}
    names = [name for name in sorted(fleet.models) if name > page.after][: page.limit + 1]
    return json_answer(page.of(names, lambda name: _model_row(fleet, fleet.models[name], rows), str))


@router.post("/models/preload", openapi_extra=answers(PreloadedModel, BadRequest, NotFound, Conflict, body=Preloading))
async def preload_model(request: GatewayRequest) -> Answer:
    """Has servers take a model into memory, each by its kind's own way, and tells of each what came of it."""
    require_somewhere(request.auth, OPERATE_FLEET)
    asked, runtime = decode(request.body, Preloading), request.runtime
    model = _find(runtime.fleet, asked.model)
    servers = _chosen(model, asked.servers)
    for server in servers:
        require(request.auth, OPERATE_FLEET, server=server.server_id)
    done = await preload(runtime.config, model, servers, _lasting(asked.keep_alive))
    await _observe(request, model.name, done)
    return json_answer(PreloadedModel(model.name, done))


@router.get("/servers/status", openapi_extra=answers(ServerRows, BadRequest))
async def management_servers(request: GatewayRequest, limit: Limit = USUAL, cursor: NameCursor | None = None) -> Answer:
    """All servers: how they are, what they hold, what they have to do."""
    require(request.auth, SEE_FLEET)
    page = Page.asked(limit, cursor)
    everything = report(request.runtime)
    rows = [row for row in everything if row.server_id > page.after]
    found = page.of(rows, lambda row: row, lambda row: row.server_id)
    return json_answer({"summary": summary(everything), **found})


@router.post(
    "/cache/clear", openapi_extra=answers(Cleared, BadRequest, NotFound, Unavailable, body=Clearing, required=False)
)
async def clear_cache(request: GatewayRequest) -> Answer:
    """Clears cached answers, of all workers and of the shared cache."""
    require(request.auth, OPERATE_FLEET)
    asked, runtime = decode(request.body, Clearing), request.runtime
    models = _models(runtime.fleet, asked)
    await in_thread(clearings.clear, asked.team or "", [""] if models is None else models)
    await clearings.load(runtime.pool)
    return json_answer(Cleared("cleared", asked.team, models))


@router.get("/stats", openapi_extra=answers(Statistics, BadRequest, Unavailable))
async def management_statistics(
    request: GatewayRequest,
    period: Period | None = None,
    since: str | None = None,
    until: str | None = None,
    team: Asked | None = None,
    model: Asked | None = None,
    server: Asked | None = None,
) -> Answer:
    """Requests, tokens, errors, times and cache of a period, by model, server, team and moment.

    `period` is like `90s`, `15m`, `24h` (unless said) or `7d`, and ends now or at `until`; `since` and `until` are
    moments like `2026-01-31T12:00:00Z`. Of a period with more than a million requests the newest million are looked at,
    and `complete` is false.
    """
    require(request.auth, SEE_FLEET)
    only = {name: value for name, value in zip(FILTERS, (team, model, server), strict=True) if value is not None}
    start, end = period_of(period, since, until, datetime.now(UTC))
    async with _alone:
        return json_answer(await statistics(request.runtime.pool, start, end, only))


def period_of(period: str | None, since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """Beginning and end of what is asked for; BadRequest where that is no period, or too long a one."""
    end = _moment("until", until) if until is not None else now
    if since is not None:
        start, named = _moment("since", since), "since"
    else:
        start, named = end - _length(period if period is not None else USUAL_PERIOD), "period"
    if not start < end <= start + LONGEST_PERIOD:
        raise BadRequest(f"A period begins before it ends and has {LONGEST_PERIOD.days} days at most.", param=named)
    return start, end


def _length(text: str) -> timedelta:
    found = _PERIOD.fullmatch(text)
    try:
        length = timedelta(**{UNITS[found[2]]: int(found[1])}) if found else timedelta()
    except OverflowError:
        length = timedelta.max
    if not timedelta() < length <= LONGEST_PERIOD:
        raise BadRequest("'period' is a length of time like 90s, 15m, 24h or 7d, a year at most.", param="period")
    return length


def _moment(name: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        # Far enough from the ends of time to count with.
        if 2000 <= found.year < 2200:
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
            return found.astimezone(UTC)  # PostgreSQL knows no offsets of 16 hours and more
    except ValueError:
        pass
    raise BadRequest(f"'{name}' is a moment like 2026-01-31T12:00:00Z.", param=name)


def _model_row(fleet: Fleet, model: Model, rows: Mapping[str, ServerReport]) -> ModelRow:
    servers = [_on_server(model, server, rows.get(server.server_id)) for server in model.servers]
    known = [one.loaded for one in servers if one.loaded is not None]
    aliases = sorted(alias for alias in fleet.aliases if fleet.find(alias) is model)
    name = model.model_class.name if model.model_class else None
    return ModelRow(
        id=model.name, model_class=name, loaded=any(known) if known else None, aliases=aliases, servers=servers
    )


def _on_server(model: Model, server: Server, row: ServerReport | None) -> OnServer:
    holding = model.holdings.get(server.server_id)
    load = row.load_metrics if row else None
    return OnServer(
        server.server_id,
        server.state,
        row.health_status if row else "healthy",
        load.has(model.name) if load else None,
        holding.context_length if holding else None,
        sorted(holding.capabilities) if holding and holding.capabilities is not None else None,
    )


def _find(fleet: Fleet, name: str) -> Model:
    found = fleet.find(name)
    if found is None:
        raise NotFound(f"The model '{name}' does not exist.", code="model_not_found", param="model")
    return found


def _chosen(model: Model, named: list[str]) -> list[Server]:
    """The servers that are named, or all that get traffic; Conflict names one that is not to be called."""
    held = {server.server_id: server for server in model.servers}
    for name in named:
        if name not in held:
            raise NotFound(f"No server '{name[:64]}' holds the model '{model.name}'.", param="servers")
        if held[name].state not in CALLED:
            state = held[name].state
            raise Conflict(f"The server '{name}' is {state}: it is called once it is enabled.", param="servers")
    return [held[name] for name in dict.fromkeys(named)] or [one for one in held.values() if one.state == "active"]


def _lasting(told: str | int) -> str | int:
    """How long a model shall stay; BadRequest for no time at all, by which Ollama would unload it."""
    if told == 0:
        raise BadRequest("'keep_alive' is a duration like 90s, 30m or 2h, seconds, or -1 for ever.", param="keep_alive")
    return -1 if told == "-1" else told


async def _observe(request: GatewayRequest, name: str, done: list[Preloaded]) -> None:
    """Tells the board what is in memory now: the next probe would find it, but not yet."""
    board = request.runtime.board
    try:
        for one in done:
            if one.result == "loaded":
                await board.loads.observe_model(one.server_id, name)
        await request.runtime.watch.refresh()
    except RedisError:
        return


def _models(fleet: Fleet, asked: Clearing) -> list[str] | None:
    """The models that a clearing is about, None for all. One that no server holds any more may still be cleared."""
    if asked.everything is False:
        raise BadRequest("'all' is true or left out: name a team, a model or a class to clear less.", param="all")
    if asked.everything and (asked.team, asked.model, asked.model_class) != (None, None, None):
        raise BadRequest("'all' goes with no team, model or class.", param="all")
    if asked.model is not None and asked.model_class is not None:
        raise BadRequest("Name a model or a class, not both.", param="class")
    if asked.model is not None:
        found = fleet.find(asked.model)
        return [found.name if found else asked.model]
    if asked.model_class is None:
        return None
    named = [
        model.name
        for model in fleet.models.values()
        if model.model_class and model.model_class.name == asked.model_class
    ]
    if not named:
        raise NotFound(f"No model is of the class '{asked.model_class}'.", param="class")
    return named
