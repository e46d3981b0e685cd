"""What stands in Citadel while keys of every role are tried on it: what is of their team, and what is another's, with a
mark in all that the other has. Whatever somebody changes is put back.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Field, Model

from apps.gateway.access.keys.shape import id_of
from apps.gateway.models import Budget, Key, Membership, Price, Spend, Team
from apps.orchestration.models import Delivery, Hook, ServedModel, Server, Subscription
from tests.instance import Instance


@dataclass(frozen=True)
class Names:
    """By which somebody's things are asked for."""

    team: str
    key_id: str
    budget_id: str
    user: str
    server_id: str
    model: str


def _some(letters: str) -> Names:
    """Of the same length each time, so that one can stand for another.

    Of a model's name only its own `letters` are used: none is like another, and none suggested for another.
    """
    key_id, budget_id = secrets.token_hex(5), str(10**11 + secrets.randbelow(10**11))
    team, user, server_id = (f"{name}-{secrets.token_hex(4)}" for name in ("team", "user", "server"))
    model = "model-" + "".join(secrets.choice(letters) for _ in range(10))
    return Names(team, key_id, budget_id, user, server_id, model)


OWN, OTHER, ABSENT = map(_some, ("bcfghijk", "npqrstuv", "123456789"))
ABOVE = secrets.token_hex(5)
"""A key of the own team that may all."""
SUBSCRIPTION, HOOK, DELIVERY = f"sub_{secrets.token_hex(8)}", f"hook-{secrets.token_hex(4)}", secrets.randbelow(10**11)
MARK, NUMBER = f"mark-{secrets.token_hex(8)}", 10**12 + secrets.randbelow(10**11)
"""Of what is another's, and known by no name."""
SECRETS = (f"secret-{secrets.token_hex(16)}", secrets.token_hex(16))
"""A server's key, and a subscription's salt."""
THEIR_TOKEN, NO_TOKEN, CLIENT_ID, CLIENT_SECRET = (f"stands-for-{secrets.token_hex(8)}" for _ in range(4))
"""What stands in a request for a token of the other team, for one of nobody, and for who asks as an OAuth client."""
NOBODYS_PORT = 9

Kind = type[Model]
MADE: Mapping[str, tuple[Kind, Mapping[str, str]]] = {
    "POST /api/v1/keys": (Key, {"key_id": "key_id"}),
    "POST /api/v1/teams": (Team, {"slug": "slug"}),
    "PUT /api/v1/teams/{team}/members/{user}": (Membership, {"user__username": "user", "team__slug": "team"}),
    "POST /api/v1/budgets": (Budget, {"pk": "id"}),
    "PUT /api/v1/prices/{model}": (Price, {"model": "model"}),
    "POST /orchestration/webhooks": (Subscription, {"subscription_id": "id"}),
    "POST /orchestration/servers/register": (Server, {"server_id": "server_id"}),
}
"""What an operation makes, and by which of its answer's fields that is found."""


def parameters() -> dict[str, Sequence[Any]]:
    """What to ask for, by the names of parameters."""
    of_teams = {name: [vars(names)[name] for names in (OWN, OTHER, ABSENT)] for name in vars(OWN)}
    return {
        **of_teams,
        "key_id": [*of_teams["key_id"], ABOVE],
        "model_id": of_teams["model"],
        "server": of_teams["server_id"],
        "subscription_id": [SUBSCRIPTION],
        "delivery_id": [str(DELIVERY)],
        "webhook_type": [HOOK],
    }


def fields() -> dict[str, Sequence[Any]]:
    """And by the names of fields of bodies."""
    named = parameters()
    return {
        "team": named["team"],
        "key_id": named["key_id"],
        "id": named["server_id"],
        "server_id": [OWN.server_id],
        "hostname": ["127.0.0.1"],
        "url": ["", f"http://127.0.0.1:{NOBODYS_PORT}/"],  # of a server that stays where it is, or of a receiver
        "model": named["model"],
        "model_required": named["model"],
        "models": [[OWN.model]],
        "token": [THEIR_TOKEN],
        "client_id": [CLIENT_ID],
        "client_secret": [CLIENT_SECRET],
    }


class Planted:
    """It, in the database. `registrar`: the id of the key that has registered the own server."""

    def __init__(self, citadel: Instance, registrar: str):
        self._rows: dict[Kind, list[Model]] = {}
        self._plant_team(citadel, OWN, "ours", registrar)
        self.their_key = self._plant_team(citadel, OTHER, MARK, OTHER.key_id)
        self._plant_key(citadel, OWN.team, ABOVE, "above", role="admin")
        Spend.objects.create(
            holder=f"team:{OTHER.team}", day=datetime.now(UTC).date(), requests=NUMBER, tokens=NUMBER, money=NUMBER
        )
        subscription = Subscription(
            subscription_id=SUBSCRIPTION,
            url=f"http://127.0.0.1:{NOBODYS_PORT}/{MARK}",
            description=MARK,
            salt=SECRETS[1],
            enabled=False,
        )
        self._plant(subscription)
        self._plant(
            Delivery(
                pk=DELIVERY,
                subscription=subscription,
                event_id=1,
                type="server_registered",
                payload={"mark": MARK},
                next_at=datetime.now(UTC),
            )
        )
        self._plant(Hook(name=HOOK, description=MARK))

    def mend(self, operation: str, answer: Mapping[str, Any]) -> None:
        """Makes all as it was after an operation that was answered so."""
        if operation in MADE:
            kind, names = MADE[operation]
            found = kind._default_manager.filter(**{column: answer[field] for column, field in names.items()})
            found.exclude(pk__in=[row.pk for row in self._rows[kind]]).delete()
        for kind, rows in self._rows.items():
            there = kind._default_manager.in_bulk([row.pk for row in rows])
            changed = [row for row in rows if row.pk not in there or _kept(there[row.pk]) != _kept(row)]
            if changed:
                columns = [field.name for field in _fields(kind) if not field.primary_key]
                kind._default_manager.bulk_create(
                    changed, update_conflicts=True, unique_fields=["pk"], update_fields=columns
                )

    def remove(self) -> None:
        """Takes it out. Its keys are locked: their last uses may just be written down."""
        with transaction.atomic():
            list(Key.objects.select_for_update(of=("self",)).filter(team__slug__in=(OWN.team, OTHER.team)))
            for kind in reversed(self._rows):
                kind._default_manager.filter(pk__in=[row.pk for row in self._rows[kind]]).delete()
        Spend.objects.filter(holder__in=[f"team:{names.team}" for names in (OWN, OTHER)]).delete()
        User.objects.filter(username__in=[OWN.user, OTHER.user]).delete()

    def _plant(self, row: Model) -> None:
        row.save()
        row.refresh_from_db()
        self._rows.setdefault(type(row), []).append(row)

    def _plant_team(self, citadel: Instance, names: Names, word: str, registrar: str) -> str:
        """A team with all that one has; gives its key."""
        plain = self._plant_key(citadel, names.team, names.key_id, word, models=[names.model])
        key = Key.objects.select_related("team").get(key_id=names.key_id)
        team = key.team
        team.name = word
        self._plant(team)
        self._plant(Budget(pk=int(names.budget_id), key=key, period=Budget.Period.TOTAL, tokens=10**14))
        self._plant(Budget(team=team, period=Budget.Period.TOTAL, tokens=10**14))
        self._plant(Membership(user=User.objects.create_user(names.user), team=team))
        self._plant(Price(model=names.model, prompt=0))
        server = Server(
            server_id=names.server_id,
            hostname="127.0.0.1",
            port=NOBODYS_PORT,
            kind=Server.Kind.OPENAI,
            role=word,
            capabilities=[word],
            api_key=SECRETS[0],
            registered_by=registrar,
        )
        self._plant(server)
        self._plant(ServedModel(server=server, name=f"{word}-model", named_by=ServedModel.NamedBy.OPERATOR))
        return plain

    def _plant_key(self, citadel: Instance, team: str, key_id: str, name: str, **more: Any) -> str:
        plain = citadel.key(team, **more)
        key = Key.objects.get(key_id=id_of(plain))
        key.key_id, key.name = key_id, name
        self._plant(key)
        return plain


def _fields(kind: Kind) -> Iterator["Field[Any, Any]"]:
    """The columns but for those that say when a row was made."""
    return (field for field in kind._meta.concrete_fields if not getattr(field, "auto_now_add", False))


def _kept(row: Model) -> list[Any]:
    return [getattr(row, field.attname) for field in _fields(type(row))]
