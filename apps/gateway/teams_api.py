"""`/api/v1/teams`: all teams for who may, the own one for those who see it."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.models import Count, Q, QuerySet
from django.utils import timezone
from msgspec import UNSET, UnsetType
from ninja import Router

from apps.gateway.access.keys import granting
from apps.gateway.keys_api import ChangedLimits, Number
from apps.gateway.models import Team
from apps.gateway.requests import GatewayRequest
from citadel.answer import Answer, json_answer
from citadel.caller import Caller
from citadel.database import in_thread
from citadel.decoding import decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NameCursor, Page
from citadel.permissions import MANAGE_TEAMS, SEE_KEYS, require, require_somewhere

router = Router(tags=["Teams"])

Slug = Annotated[str, msgspec.Meta(max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern="^[^\\u0000]*$")]


class TeamLimits(msgspec.Struct, forbid_unknown_fields=True):
    """What all keys of a team together may send: 0 and null are no limit."""

    requests_per_minute: Number | None = None
    tokens_per_minute: Number | None = None
    concurrent: Number | None = None


class NewTeam(msgspec.Struct, forbid_unknown_fields=True):
    """A team to be made: `slug` is how keys, records and limits name it, `name` how people do."""

    slug: Slug
    name: Name | None = None
    limits: TeamLimits = msgspec.field(default_factory=TeamLimits)


class ChangedTeam(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be another than it is; the slug stays, since records name it."""

    name: Name | UnsetType = UNSET
    limits: ChangedLimits | UnsetType = UNSET


class TeamRow(msgspec.Struct):
    """A team, and how many of its keys are in force; times in seconds since the epoch."""

    slug: str
    name: str
    limits: TeamLimits
    keys: int
    created: float


class TeamRows(msgspec.Struct):
    """A page of them."""

    data: list[TeamRow]
    next: str | None


@router.get("", openapi_extra=answers(TeamRows, BadRequest, Unavailable))
async def teams(request: GatewayRequest, limit: Limit = USUAL, cursor: NameCursor | None = None) -> Answer:
    """Teams, by their slugs."""
    require_somewhere(request.auth, SEE_KEYS)
    page = Page.asked(limit, cursor)
    rows = await in_thread(_listed, request.auth, page)
    return json_answer(page.of(rows, _row, lambda team: team.slug))


@router.post("", openapi_extra=answers(TeamRow, BadRequest, Conflict, Unavailable, body=NewTeam))
async def create_team(request: GatewayRequest) -> Answer:
    """A new team."""
    require(request.auth, MANAGE_TEAMS)
    asked = decode(request.body, NewTeam)
    return json_answer(_row(await in_thread(_create, request.auth, asked)))


@router.get("/{team}", openapi_extra=answers(TeamRow, NotFound, Unavailable))
async def team(request: GatewayRequest, team: str) -> Answer:
    """One team."""
    require_somewhere(request.auth, SEE_KEYS)
    return json_answer(_row(await in_thread(_find, request.auth, team)))


@router.patch("/{team}", openapi_extra=answers(TeamRow, BadRequest, NotFound, Unavailable, body=ChangedTeam))
async def change_team(request: GatewayRequest, team: str) -> Answer:
    """Changes what is named; every worker knows within a second."""
    require(request.auth, MANAGE_TEAMS)
    asked = decode(request.body, ChangedTeam, needed=True)
    return json_answer(_row(await in_thread(_change, request.auth, team, asked)))


def _seen(by: Caller) -> QuerySet[Team]:
    in_force = Q(keys__revoked=None) & (Q(keys__expires=None) | Q(keys__expires__gt=timezone.now()))
    rows = Team.objects.annotate(keys_in_force=Count("keys", filter=in_force))
    return rows if granting.sees(by) else rows.filter(slug__in=granting.teams_seen(by))


def _listed(by: Caller, page: Page) -> list[Team]:
    return list(_seen(by).filter(slug__gt=page.after).order_by("slug")[: page.limit + 1])


def _find(by: Caller, slug: str) -> Team:
    found = None if "\0" in slug else _seen(by).filter(slug=slug).first()
    if found is None:
        raise granting.no_team(by, slug)
    return found


def _create(by: Caller, asked: NewTeam) -> Team:
    team = Team(slug=asked.slug, name=asked.name or asked.slug, **msgspec.structs.asdict(asked.limits))
    try:
        with granting.managing_teams(by):
            team.clean_fields()
            team.save()
    except ValidationError as error:
        name, messages = next(iter(error.message_dict.items()))
        raise BadRequest(f"Invalid value for '{name}': {messages[0].rstrip('.')}.", param=name) from None
    except IntegrityError:
        raise Conflict(f"There is a team '{asked.slug}' already.", code="team_exists") from None
    return _find(by, asked.slug)


def _change(by: Caller, slug: str, asked: ChangedTeam) -> Team:
    team, told = _find(by, slug), {name: value for name, value in _fields(asked) if value is not UNSET}
    if told:
        with granting.managing_teams(by):
            Team.objects.filter(pk=team.pk).update(**told)
    return _find(by, slug)


def _fields(asked: ChangedTeam) -> Iterator[tuple[str, Any]]:
    yield "name", asked.name
    if asked.limits is not UNSET:
        yield from msgspec.structs.asdict(asked.limits).items()


def _row(team: Any) -> TeamRow:
    limits = TeamLimits(team.requests_per_minute, team.tokens_per_minute, team.concurrent)
    return TeamRow(team.slug, team.name, limits, team.keys_in_force, team.created.timestamp())
