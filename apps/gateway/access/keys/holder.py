"""Who holds a key: what the database says of it, as a caller. Bad values allow nothing."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from ipaddress import ip_network
from typing import NamedTuple, TypeVar, cast

from apps.gateway.limits.budgets import BILLION, TEAM
from apps.gateway.limits.waiting import PRIORITIES
from citadel.caller import NO_LIMITS, Budget, Caller, Limits, Network, Period, plain_name
from citadel.sections import ClientLimit

T = TypeVar("T")


Told = Sequence[tuple[int, bool, str, int | None, str | None]]
"""Of each budget its number, whether it is the team's, its period, tokens, and money as PostgreSQL writes it."""


class Row(NamedTuple):
    """A key's row, in the order of `COLUMNS`; `expires` is in seconds since the epoch."""

    key_id: str
    name: str
    team: str
    role: str
    models: object
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    expires: float | None
    max_priority: str
    scopes: object
    addresses: object
    servers: object
    team_requests: int | None
    team_tokens: int | None
    team_concurrent: int | None
    budgets: Told | None = None


_BUDGETS = (
    "SELECT json_agg(json_build_array(b.id, b.team_id IS NOT NULL, b.period, b.tokens, b.money::text) ORDER BY b.id) "
    "FROM gateway_budget b"
)
COLUMNS = (
    "k.key_id, k.name, t.slug, k.role, k.allowed_models, k.requests_per_minute, k.tokens_per_minute, "
    "k.concurrent, extract(epoch FROM k.expires)::float8, k.max_priority, k.scopes, k.addresses, k.servers, "
    "t.requests_per_minute, t.tokens_per_minute, t.concurrent, "
    f"({_BUDGETS} WHERE b.key_id = k.id OR b.team_id = t.id)"
)
"""Of `gateway_key k` and `gateway_team t`."""
TEAM_COLUMNS = (
    "t.slug, coalesce(t.requests_per_minute, 0), coalesce(t.tokens_per_minute, 0), coalesce(t.concurrent, 0), "
    f"({_BUDGETS} WHERE b.team_id = t.id)"
)
"""Of `gateway_team t`."""


class Bounds(NamedTuple):
    """What holds for all of a team together."""

    limits: Limits = NO_LIMITS
    budgets: tuple[Budget, ...] = ()


UNBOUNDED = Bounds()


def bounds(slug: str, requests: int, tokens: int, concurrent: int, told: Told | None) -> Bounds:
    """Of a team, by its row in the order of `TEAM_COLUMNS`."""
    return Bounds(Limits(requests, tokens, concurrent), budgets(told, slug, ""))


def budgets(told: Told | None, team: str, key_id: str) -> tuple[Budget, ...]:
    """Those of a team, and of a key, as the database tells them."""
    return tuple(
        Budget(
            number,
            TEAM + team if is_team else key_id,
            cast(Period, period),  # the column holds no other
            tokens,
            None if money is None else int(Decimal(money) * BILLION),
        )
        for number, is_team, period, tokens, money in told or ()
    )


def holder(row: Row, defaults: ClientLimit, *, digest: bytes = b"", until: float | None = None) -> Caller:
    """The caller that a key makes, by the secret of that digest; its `expires`, or `until` where that is earlier."""
    ends = [end for end in (row.expires, until) if end is not None]
    own = (row.requests_per_minute, row.tokens_per_minute, row.concurrent)
    usual = (defaults.requests_per_minute, defaults.tokens_per_minute, defaults.concurrent)
    return Caller(
        key_id=row.key_id,
        name=row.name,
        team=row.team,
        role=row.role,
        models=_set(row.models, plain_name),
        limits=Limits(*map(_number, own, usual)),
        own_limits=frozenset(
            name
            for name, limit, default in zip(Limits._fields, own, usual, strict=True)
            if limit == 0 or (limit is not None and 0 < default < limit)
        ),
        team_limits=Limits(row.team_requests or 0, row.team_tokens or 0, row.team_concurrent or 0),
        expires=min(ends, default=None),
        max_priority=PRIORITIES.get(row.max_priority, 0),
        scopes=_set(row.scopes, str),
        addresses=_networks(row.addresses),
        servers=_set(row.servers, str),
        budgets=budgets(row.budgets, row.team, row.key_id),
        digest=digest,
    )


def _set(names: object, meant: Callable[[str], str]) -> frozenset[str] | None:
    """What a key is restricted to, None for nothing. What isn't a list of names allows none."""
    if names is None or names == []:
        return None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return frozenset(map(meant, names))
    return frozenset()


def _networks(names: object) -> tuple[Network, ...] | None:
    texts = _set(names, str)
    try:
        return None if texts is None else tuple(ip_network(text) for text in sorted(texts))
    except ValueError:
        return ()


def _number(value: int | None, default: int) -> int:
    return value if isinstance(value, int) else default
