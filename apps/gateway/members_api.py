"""`/api/v1/teams/{team}/members`: the people of a team, seen by who sees it, said by administrators."""

from typing import Annotated, Any

import msgspec
from django.contrib.auth import get_user_model
from ninja import Router

from apps.gateway.access.keys import granting
from apps.gateway.models import Membership
from apps.gateway.requests import GatewayRequest
from citadel.answer import Answer, json_answer
from citadel.caller import Caller
from citadel.database import in_thread
from citadel.decoding import decode
from citadel.description import answers
from citadel.errors import BadRequest, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NameCursor, Page
from citadel.permissions import MANAGE_TEAMS, SEE_KEYS, require, require_somewhere

router = Router(tags=["Teams"])

Role = Annotated[str, msgspec.Meta(extra_json_schema={"enum": Membership.Role.values})]


class AskedMember(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody is to be in a team: an owner manages its keys in the console, a member or a viewer sees them."""

    role: Role = Membership.Role.MEMBER.value


class MemberRow(msgspec.Struct):
    """Somebody of a team, by the name of the account; since when, in seconds since the epoch."""

    user: str
    team: str
    role: str
    created: float


class MemberRows(msgspec.Struct):
    """A page of them, by their names."""

    data: list[MemberRow]
    next: str | None


@router.get("/{team}/members", openapi_extra=answers(MemberRows, BadRequest, NotFound, Unavailable))
async def members(request: GatewayRequest, team: str, limit: Limit = USUAL, cursor: NameCursor | None = None) -> Answer:
    """Who belongs to a team."""
    require_somewhere(request.auth, SEE_KEYS)
    page = Page.asked(limit, cursor)
    rows = await in_thread(_listed, request.auth, team, page)
    return json_answer(page.of(rows, _row, lambda member: member.user.get_username()))


@router.put(
    "/{team}/members/{user}",
    openapi_extra=answers(MemberRow, BadRequest, NotFound, Unavailable, body=AskedMember, required=False),
)
async def put_member(request: GatewayRequest, team: str, user: str) -> Answer:
    """Puts somebody who has an account of the console into a team, or gives another role there."""
    require(request.auth, MANAGE_TEAMS)
    asked = decode(request.body, AskedMember)
    return json_answer(_row(await in_thread(_put, request.auth, team, user, asked.role)))


@router.delete("/{team}/members/{user}", openapi_extra=answers(MemberRow, NotFound, Unavailable))
async def remove_member(request: GatewayRequest, team: str, user: str) -> Answer:
    """Takes somebody out of a team, whose next request in the console sees nothing of it."""
    require(request.auth, MANAGE_TEAMS)
    return json_answer(_row(await in_thread(_remove, request.auth, team, user)))


def _of(by: Caller, team: str) -> Any:
    return Membership.objects.select_related("user", "team").filter(team=granting.find_team(by, team))


def _listed(by: Caller, team: str, page: Page) -> list[Membership]:
    return list(_of(by, team).filter(user__username__gt=page.after).order_by("user__username")[: page.limit + 1])


def _put(by: Caller, team: str, name: str, role: str) -> Membership:
    if role not in Membership.Role.values:
        raise BadRequest(f"Invalid value for 'role': one of {', '.join(Membership.Role.values)}.", param="role")
    user = None if "\0" in name else get_user_model()._default_manager.filter(username=name).first()
    if user is None:
        raise NotFound(f"There is no account '{name[:150]}' in the console.", param="user")
    with granting.managing_teams(by):
        found = granting.find_team(by, team)
        member, _ = Membership.objects.update_or_create(user=user, team=found, defaults={"role": role})
    return member


def _remove(by: Caller, team: str, name: str) -> Membership:
    member: Membership | None = None if "\0" in name else _of(by, team).filter(user__username=name).first()
    if member is None:
        raise NotFound(f"There is no member '{name[:150]}' in the team '{team[:64]}'.", param="user")
    with granting.managing_teams(by):
        member.delete()
    return member


def _row(member: Membership) -> MemberRow:
    return MemberRow(member.user.get_username(), member.team.slug, member.role, member.created.timestamp())
