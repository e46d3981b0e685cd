"""What a caller may do with the keys of others: they are seen, made and changed within what the caller may itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet

from apps.gateway.access.keys import life
from apps.gateway.access.keys.holder import Row, Told, holder
from apps.gateway.models import Key, Team
from citadel import config
from citadel.caller import Caller, Period
from citadel.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthenticated, Withheld
from citadel.pages import Page
from citadel.permissions import MANAGE_KEYS, MANAGE_TEAMS, SEE_KEYS, beyond, may, outranks, require, spends_within

Fields = Mapping[str, Any]
"""Columns of a key and what they are to hold."""
MOST = 1000
"""Keys of a team that are not revoked: each worker holds all of them."""
NAMES = {
    "allowed_models": "models",
    "requests_per_minute": "limits.requests_per_minute",
    "tokens_per_minute": "limits.tokens_per_minute",
    "concurrent": "limits.concurrent",
}
"""Columns that the API calls otherwise."""


def listed(by: Caller, team: str | None, page: Page) -> list[Key]:
    """The keys that `by` sees, newest first, and one beyond the page; NotFound where it sees no such team."""
    rows = _seen(by)
    if team is not None:
        rows = rows.filter(team=find_team(by, team))
    if page.number is not None:
        rows = rows.filter(pk__lt=page.number)
    return list(rows.order_by("-pk")[: page.limit + 1])


def find(by: Caller, key_id: str) -> Key:
    """A key that `by` sees; NotFound where there is none or it is another team's, which is the same."""
    found = None if "\0" in key_id else _seen(by).filter(key_id=key_id).first()
    if found is None:
        raise _no_key(by, key_id)
    return found


def find_team(by: Caller, slug: str) -> Team:
    """A team whose keys `by` sees; NotFound, likewise."""
    found = None
    if "\0" not in slug and sees(by, slug):
        found = Team.objects.filter(slug=slug).first()
    if found is None:
        raise no_team(by, slug)
    return found


def no_team(by: Caller, slug: str) -> NotFound:
    """What is told of a team that there is not, or that `by` does not see."""
    return unseen(by)(f"There is no team '{slug[:64]}'.", param="team")


def unseen(by: Caller) -> type[NotFound]:
    """As what `by` is told that something of a team's is not there."""
    return NotFound if sees(by) else Withheld


def sees(by: Caller, team: str | None = None) -> bool:
    """Whether `by` sees keys and what they spend: those of a team where one is named, else of all."""
    return may(by, SEE_KEYS, team) or may(by, MANAGE_KEYS, team) or may(by, MANAGE_TEAMS)


def teams_seen(by: Caller) -> frozenset[str]:
    """Of which of its own teams `by` sees that: all that is seen by who doesn't see it of all teams."""
    return frozenset(team for team in by.teams if sees(by, team))


def create(by: Caller, team: str, fields: Fields) -> tuple[Key, str]:
    """A new key and what it is; BadRequest names the field that is wrong, Forbidden says what `by` can't give."""
    with transaction.atomic():
        by, owner = team_as_it_is(by, team)
        key = Key(team=owner)
        _require_management(by, key)
        _check_making(by)
        check_room(owner)
        plain = life.give_secret(key)
        _take_over(key, fields, by)
        key.save()
        _check_within(key, by)
    return find(by, key.key_id), plain


def check_room(team: Team) -> None:
    """Conflict where a team has as many keys as it may."""
    if team.keys.filter(revoked=None).count() >= MOST:
        raise Conflict(f"The team '{team.slug}' has {MOST} keys, and no more may be.", code="too_many_keys")


def change(by: Caller, key_id: str, fields: Fields) -> Key:
    """Changes a key in force and gives it as it is then; Conflict for one that is revoked."""
    with transaction.atomic():
        by, key = _in_force(by, key_id)
        _check_within(key, by)
        _take_over(key, fields, by)
        _check_within(key, by)
        key.save(update_fields=list(fields))
    return find(by, key_id)


def rotate(by: Caller, key_id: str, grace: timedelta) -> tuple[Key, str]:
    """Another secret for a key, which is in what this gives alone."""
    with transaction.atomic():
        by, key = _in_force(by, key_id)
        _check_within(key, by)
        plain = life.rotate(key_id, grace)
    return find(by, key_id), plain


def revoke(by: Caller, key_id: str) -> Key:
    """Has a key refused; the revoked key."""
    with transaction.atomic():
        by, key = _as_they_are(by, key_id)
        check_revoking(by, key)
        life.revoke(key_id)
    return find(by, key_id)


def check_revoking(by: Caller, key: Key) -> None:
    """Forbidden unless `by` may have the key refused."""
    _require_management(by, key)
    if not outranks(by, _caller(key)):
        raise Forbidden("This key may do more than yours: an administrator can revoke it.")


def check_giving(by: Caller, key: Key) -> None:
    """Forbidden unless `by` may make or change a key so that it is this one, and give it another secret."""
    _require_management(by, key)
    _check_within(key, by)


def team_as_it_is(by: Caller, slug: str) -> tuple[Caller, Team]:
    """What `by` may in this moment, and a team that it sees, both locked until the transaction ends."""
    by, _ = _as_they_are(by)
    return by, Team.objects.select_for_update().get(pk=find_team(by, slug).pk)


@contextmanager
def managing_teams(by: Caller) -> Iterator[None]:
    """A transaction in which `by` manages teams, as the database says, until it ends; Forbidden, Unauthenticated."""
    with transaction.atomic():
        by, _ = _as_they_are(by)
        require(by, MANAGE_TEAMS)
        yield


def below(by: Caller, key_id: str) -> tuple[Caller, Key]:
    """What `by` may in this moment, and a key in force whose budgets it may set, both locked until the transaction
    ends: one that it manages, that may no more than itself, and not its own.
    """
    by, key = _in_force(by, key_id)
    if not outranks(by, _caller(key)):
        raise Forbidden("This key may do more than yours: an administrator can set its budgets.")
    if key.key_id == by.key_id and not may(by, MANAGE_TEAMS):
        raise Forbidden("Nobody sets the budgets of the own key: another owner or an administrator can.")
    return by, key


def check_spending(key: Key, by: Caller) -> None:
    """Forbidden where a key may spend more than `by` may with its own."""
    if not spends_within(_caller(key), by):
        raise Forbidden(
            "A key can't give more than it has: the budgets of the other key must lie within those of yours.",
            code="grant_exceeds_own",
        )


def _seen(by: Caller) -> QuerySet[Key]:
    rows = Key.objects.select_related("team", "use")
    return rows if sees(by) else rows.filter(team__slug__in=teams_seen(by))


def _in_force(by: Caller, key_id: str) -> tuple[Caller, Key]:
    """A key in force that `by` manages, and what `by` may itself, locked until the transaction ends."""
    by, key = _as_they_are(by, key_id)
    _require_management(by, key)
    if key.revoked:
        raise Conflict(f"The key '{key_id}' is revoked: make a new one.", code="key_revoked")
    return by, key


def _as_they_are(by: Caller, key_id: str = "") -> tuple[Caller, Key]:
    """Who asks, and a key, as the database has them in this moment, locked until the transaction ends: the worker that
    let the caller in may not know yet that its key is revoked, has another secret, or may less.
    """
    if "\0" in key_id:
        raise _no_key(by, key_id)
    rows = Key.objects.select_for_update(of=("self",)).select_related("team").order_by("pk")
    locked = {key.key_id: key for key in rows.filter(key_id__in=(by.key_id, key_id))}
    own = locked.get(by.key_id)
    if own:
        if own.revoked or (by.digest and not life.is_good(own, by.digest)):
            raise Unauthenticated("The API key is not valid.")
        by = _caller(own).lent(by.scopes, by.expires)
    found = locked.get(key_id) if key_id else None
    if key_id and (found is None or not sees(by, found.team.slug)):
        raise _no_key(by, key_id)
    return by, found or Key()


def _no_key(by: Caller, key_id: str) -> NotFound:
    return unseen(by)(f"There is no key '{key_id[:32]}'.")


def _require_management(by: Caller, key: Key) -> None:
    if not may(by, MANAGE_KEYS, key.team.slug):
        raise Forbidden(f"This needs the permission '{MANAGE_KEYS}' for the team '{key.team.slug}'.")


def _check_within(key: Key, by: Caller) -> None:
    """Forbidden where the key may, or would, do more than the caller."""
    if fields := ", ".join(beyond(_caller(key), by)):
        raise Forbidden(
            f"A key can't give more than it has. Of the other key these must lie within your own: {fields}.",
            code="grant_exceeds_own",
        )


def _take_over(key: Key, fields: Fields, by: Caller) -> None:
    """Sets the fields; BadRequest where one is wrong.

    Who ties a certificate to a key says who its owner is here, which is for nobody to say of others but administrators.
    """
    if fields.get("certificates") and not may(by, MANAGE_TEAMS):
        raise Forbidden(f"To tie certificates to keys needs the permission '{MANAGE_TEAMS}'.")
    for name, value in fields.items():
        setattr(key, name, value)
    try:
        key.clean_fields(exclude={column.name for column in Key._meta.fields} - set(fields))
    except ValidationError as error:
        name, messages = next(iter(error.message_dict.items()))
        name = NAMES.get(name, name)
        raise BadRequest(f"Invalid value for '{name}': {messages[0].rstrip('.')}.", param=name) from None


def _check_making(by: Caller) -> None:
    """Forbidden to who has a budget of its own, unless it manages teams: each new key would have a purse of its own."""
    if any(budget.holder == by.key_id for budget in by.budgets) and not may(by, MANAGE_TEAMS):
        raise Forbidden(
            "A key with a budget of its own makes no keys, with which it could spend as much once again: an owner "
            "without one can, or an administrator.",
            code="grant_exceeds_own",
        )


def _caller(key: Key) -> Caller:
    row = Row(
        key.key_id,
        key.name,
        key.team.slug,
        key.role,
        key.allowed_models,
        key.requests_per_minute,
        key.tokens_per_minute,
        key.concurrent,
        key.expires.timestamp() if key.expires else None,
        key.max_priority,
        key.scopes,
        key.addresses,
        key.servers,
        key.team.requests_per_minute,
        key.team.tokens_per_minute,
        key.team.concurrent,
        _told(key),
    )
    return holder(row, config.load().limits.client)


def _told(key: Key) -> Told:
    """The budgets of a key itself, as the database tells them."""
    return [
        (budget.pk, False, cast("Period", budget.period), budget.tokens, None if money is None else str(money))
        for budget in (key.budgets.all() if key.pk else ())
        for money in [budget.money]
    ]
