"""`/api/v1/keys`: keys of all teams for who may, of the own team for its owners."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from ninja import Router

from apps.gateway.access.keys import granting, life
from apps.gateway.access.keys.credentials import FINGERPRINT, PUBLIC_KEY
from apps.gateway.access.keys.granting import Fields
from apps.gateway.access.keys.life import LONGEST_GRACE, USUAL_GRACE
from apps.gateway.limits.waiting import PRIORITIES
from apps.gateway.models import Key
from apps.gateway.models.key import MOST_CERTIFICATES
from apps.gateway.requests import GatewayRequest
from citadel.answer import Answer, json_answer
from citadel.caller import LAST_MOMENT
from citadel.database import in_thread
from citadel.decoding import NO_NUL, NOT_EMPTY, check_restrictions, decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NumberCursor, Page
from citadel.permissions import MANAGE_KEYS, PERMISSIONS, SEE_KEYS, require_somewhere

router = Router(tags=["Keys"])

MOST_NUMBER = 2_147_483_647
"""Of a column that holds a limit."""
RESTRICTIONS = ("scopes", "models", "addresses", "servers")
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=NO_NUL)]
Team = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=NO_NUL)]
Role = Annotated[str, msgspec.Meta(extra_json_schema={"enum": Key.Role.values})]
Priority = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(PRIORITIES)})]
Scopes = Annotated[
    list[Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted(PERMISSIONS)})]],
    msgspec.Meta(max_length=1000, extra_json_schema=NOT_EMPTY),
]
Names = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=NO_NUL)]],
    msgspec.Meta(max_length=1000, extra_json_schema=NOT_EMPTY),
]
Addresses = Annotated[
    list[
        Annotated[
            str,
            msgspec.Meta(
                min_length=1,
                max_length=255,
                pattern=NO_NUL,
                description="An address, or a network like 10.1.0.0/16.",
                extra_json_schema={"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}, {"pattern": "^[^/]+/[0-9.]+$"}]},
            ),
        ]
    ],
    msgspec.Meta(max_length=1000, extra_json_schema=NOT_EMPTY),
]
Fingerprints = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=128, extra_json_schema={"pattern": FINGERPRINT})]],
    msgspec.Meta(max_length=MOST_CERTIFICATES),
]
PublicKey = Annotated[str, msgspec.Meta(min_length=1, max_length=200, extra_json_schema={"pattern": PUBLIC_KEY})]
Number = Annotated[int, msgspec.Meta(ge=0, le=MOST_NUMBER)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)] | Annotated[float, msgspec.Meta(ge=0, le=LAST_MOMENT)]
Grace = Annotated[int, msgspec.Meta(ge=0, le=int(LONGEST_GRACE.total_seconds()))]


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """What a key may send: 0 is no limit, null what is configured for all clients."""

    requests_per_minute: Number | None = None
    tokens_per_minute: Number | None = None
    concurrent: Number | None = None


class ChangedLimits(msgspec.Struct, forbid_unknown_fields=True):
    """Which of them are to be others than they are."""

    requests_per_minute: Number | UnsetType | None = UNSET
    tokens_per_minute: Number | UnsetType | None = UNSET
    concurrent: Number | UnsetType | None = UNSET


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """A key to be made. Of `scopes`, `models`, `addresses` and `servers`, those that it may register and operate, null
    is no restriction, and an empty list is refused; `expires` is a moment like 2030-01-31T12:00:00Z or
    seconds since the epoch. `team` is one's own unless said. `certificates` are SHA-256 fingerprints of client
    certificates that prove its holder, `public_key` an Ed25519 one of who signs requests.
    """

    name: Name
    team: Team | None = None
    role: Role = "developer"
    scopes: Scopes | None = None
    models: Names | None = None
    addresses: Addresses | None = None
    servers: Names | None = None
    certificates: Fingerprints | None = None
    public_key: PublicKey | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    max_priority: Priority = "high"
    expires: Moment | None = None


class ChangedKey(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be another than it is."""

    name: Name | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    scopes: Scopes | UnsetType | None = UNSET
    models: Names | UnsetType | None = UNSET
    addresses: Addresses | UnsetType | None = UNSET
    servers: Names | UnsetType | None = UNSET
    certificates: Fingerprints | UnsetType | None = UNSET
    public_key: PublicKey | UnsetType | None = UNSET
    limits: ChangedLimits | UnsetType = UNSET
    max_priority: Priority | UnsetType = UNSET
    expires: Moment | UnsetType | None = UNSET


class Rotating(msgspec.Struct, forbid_unknown_fields=True):
    """For how many seconds the secret until now stays good: 0 for a key that has leaked."""

    grace: Grace = int(USUAL_GRACE.total_seconds())


class KeyRow(msgspec.Struct, omit_defaults=True):
    """A key. `key` and `signing_secret`, by which requests may be signed instead of carrying the key, are shown when
    they are new, and never again; times in seconds since the epoch.
    """

    key_id: str
    name: str
    team: str
    role: str
    scopes: list[str] | None
    models: list[str] | None
    addresses: list[str] | None
    servers: list[str] | None
    certificates: list[str] | None
    public_key: str | None
    limits: Limits
    max_priority: str
    created: float
    expires: float | None
    last_used: float | None
    revoked: float | None
    former_until: float | None
    """Until when the secret before the last rotation is good."""
    key: str | UnsetType = UNSET
    signing_secret: str | UnsetType = UNSET


class KeyRows(msgspec.Struct):
    """A page of them, newest first."""

    data: list[KeyRow]
    next: str | None


@router.get("", openapi_extra=answers(KeyRows, BadRequest, NotFound, Unavailable))
async def keys(
    request: GatewayRequest, team: str | None = None, limit: Limit = USUAL, cursor: NumberCursor | None = None
) -> Answer:
    """Keys, revoked ones too, newest first; of one `team` where it is named."""
    require_somewhere(request.auth, SEE_KEYS)
    page = Page.asked(limit, cursor)
    rows = await in_thread(granting.listed, request.auth, team, page)
    return json_answer(page.of(rows, _row, lambda key: str(key.pk)))


@router.post("", openapi_extra=answers(KeyRow, BadRequest, NotFound, Conflict, Unavailable, body=NewKey))
async def create_key(request: GatewayRequest) -> Answer:
    """A new key; it is in this answer alone."""
    require_somewhere(request.auth, MANAGE_KEYS)
    asked = decode(request.body, NewKey)
    key, plain = await in_thread(granting.create, request.auth, asked.team or request.auth.team, _fields(asked))
    return json_answer(_row(key, plain))


@router.get("/{key_id}", openapi_extra=answers(KeyRow, NotFound, Unavailable))
async def key(request: GatewayRequest, key_id: str) -> Answer:
    """One key."""
    require_somewhere(request.auth, SEE_KEYS)
    return json_answer(_row(await in_thread(granting.find, request.auth, key_id)))


@router.patch("/{key_id}", openapi_extra=answers(KeyRow, BadRequest, NotFound, Conflict, Unavailable, body=ChangedKey))
async def change_key(request: GatewayRequest, key_id: str) -> Answer:
    """Changes what is named; every worker knows within a second."""
    require_somewhere(request.auth, MANAGE_KEYS)
    fields = _fields(decode(request.body, ChangedKey, needed=True))
    return json_answer(_row(await in_thread(granting.change, request.auth, key_id, fields)))


@router.post(
    "/{key_id}/rotate",
    openapi_extra=answers(KeyRow, BadRequest, NotFound, Conflict, Unavailable, body=Rotating, required=False),
)
async def rotate_key(request: GatewayRequest, key_id: str) -> Answer:
    """Another secret under the same id; the new key is in this answer alone."""
    require_somewhere(request.auth, MANAGE_KEYS)
    grace = timedelta(seconds=decode(request.body, Rotating).grace)
    return json_answer(_row(*await in_thread(granting.rotate, request.auth, key_id, grace)))


@router.delete("/{key_id}", openapi_extra=answers(KeyRow, NotFound, Unavailable))
async def revoke_key(request: GatewayRequest, key_id: str) -> Answer:
    """Refuses the key from now on, in every worker within a second; one that is revoked stays so."""
    require_somewhere(request.auth, MANAGE_KEYS)
    return json_answer(_row(await in_thread(granting.revoke, request.auth, key_id)))


def _fields(asked: NewKey | ChangedKey) -> Fields:
    """What a body says, by the columns' names; BadRequest where that would restrict a key to nothing."""
    check_restrictions(asked, *RESTRICTIONS)
    told = _said(asked)
    told.pop("team", None)
    if "limits" in told:
        told |= _said(told.pop("limits"))
    if "models" in told:
        told["allowed_models"] = told.pop("models")
    if told.get("certificates") == []:
        told["certificates"] = None
    if isinstance(told.get("expires"), float):
        told["expires"] = datetime.fromtimestamp(told["expires"], UTC)
    return told


def _said(asked: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not UNSET}


def _row(key: Key, plain: str | UnsetType = UNSET) -> KeyRow:
    return KeyRow(
        key.key_id,
        key.name,
        key.team.slug,
        key.role,
        key.scopes,
        key.allowed_models,
        key.addresses,
        key.servers,
        key.certificates,
        key.public_key,
        Limits(key.requests_per_minute, key.tokens_per_minute, key.concurrent),
        key.max_priority,
        key.created.timestamp(),
        _seconds(key.expires),
        _seconds(key.use.last_used if hasattr(key, "use") else None),
        _seconds(key.revoked),
        _seconds(key.former_until),
        plain,
        UNSET if plain is UNSET else life.signing_secret(plain),
    )


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
