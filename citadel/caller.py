"""Who asks: a frozen value that every way of proving it ends in."""

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NamedTuple

Network = IPv4Network | IPv6Network
Period = Literal["day", "week", "month", "total"]


class Limits(NamedTuple):
    """What may be sent, requests and tokens in any 60 s; 0 is no limit."""

    requests: int = 0
    tokens: int = 0
    concurrent: int = 0
    """Requests that run at once."""


NO_LIMITS = Limits()

LAST_MOMENT = 253_402_300_799
"""The end of the year 9999, in seconds since the epoch: what ends later can be written as no date."""
MOST_TOKENS = 10**15
MOST_MONEY = 9_000_000
"""Of a budget: scripts in Redis count both, money in billionths, by numbers that are exact up to 2^53."""


class Budget(NamedTuple):
    """What may be spent in each period of the calendar (UTC); None is no bound."""

    number: int
    """Which budget it is."""
    holder: str
    """Under which it is counted: a key's id, or `team:` and a team's slug."""
    period: Period
    tokens: int | None
    money: int | None
    """In billionths of the money in which prices are."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `models` is None where all are allowed, else `plain_name`s."""

    key_id: str
    name: str
    team: str
    role: str
    models: frozenset[str] | None
    limits: Limits = NO_LIMITS
    own_limits: frozenset[str] = frozenset()
    """Which of them are its own, and none at all or beyond what is configured for all: those of classes of models don't
    hold then.
    """
    team_limits: Limits = NO_LIMITS
    """Of all keys of its team together."""
    expires: float | None = None
    """Seconds since the epoch, or None."""
    max_priority: int = 3
    """The highest that its requests may have in waiting rooms, from 0 (low) to 3 (critical)."""
    scopes: frozenset[str] | None = None
    """The permissions that it has at most, or None for all of its role."""
    addresses: tuple[Network, ...] | None = None
    """From where it may ask, or None for anywhere."""
    servers: frozenset[str] | None = None
    """Those that it may register and operate where its role lets it, or None for all."""
    budgets: tuple[Budget, ...] = ()
    """Of its own, and of its team."""
    memberships: frozenset[tuple[str, str]] = frozenset()
    """Of a person: teams, and the role in each. A key has the one team that it belongs to."""
    digest: bytes = field(default=b"", repr=False)
    """Of that secret of its key which has proved it; empty where something else has."""

    @property
    def teams(self) -> frozenset[str]:
        """Those that it belongs to."""
        return frozenset({self.team, *(team for team, _ in self.memberships)}) - {""}

    def roles_in(self, team: str) -> frozenset[str]:
        """What it is in a team; nothing in one of others."""
        roles = {role for where, role in self.memberships if where == team}
        return frozenset(roles | {self.role} if team == self.team else roles)

    def may_ask_from(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a request of this caller may come from there."""
        return self.addresses is None or any(address in network for network in self.addresses)

    def lent(self, scopes: frozenset[str] | None, until: float | None) -> "Caller":
        """The same with these permissions at most, until then at the latest; None is no restriction."""
        if scopes is None or self.scopes is None:
            left = scopes if self.scopes is None else self.scopes
        else:
            left = scopes & self.scopes
        ends = [end for end in (until, self.expires) if end is not None]
        return replace(self, scopes=left, expires=min(ends, default=None))

    def without_digest(self) -> "Caller":
        """The same, proved by something beside the secrets of its key."""
        return replace(self, digest=b"")

    def may_use(self, *names: str) -> bool:
        """Whether this caller may send requests to a model that has these names."""
        return self.models is None or not self.models.isdisjoint(map(plain_name, names))


def plain_name(model: str) -> str:
    """A model's name without what Ollama says where nobody says a tag: both mean one model."""
    return model.removesuffix(":latest")


STRANGER = Caller("", "stranger", "", "", frozenset())
"""Who asks without proving to be anybody: may do nothing that needs a permission."""
