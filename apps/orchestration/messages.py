"""What is said over `/ws/console`: one union of types, told apart by `type`.

Its events are those that `GET /orchestration/events` lists. What there is to say of each is a type of its own, and
`events.py` takes nothing else.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Generic, Literal, TypeVar, get_args

from msgspec import UNSET, Struct, UnsetType, field

from apps.orchestration.health.conditions import Finder, Status
from citadel.caller import Period

Type = Literal[
    "server_registered",
    "server_departed",
    "health_status_changed",
    "load_threshold_exceeded",
    "failover_initiated",
    "failover_completed",
    "cluster_rebalanced",
    "server_drained",
    "server_enabled",
    "budget_warning",
]
TYPES: tuple[str, ...] = get_args(Type)
Cause = Literal["automatic", "manual"]
"""Whose word a failover is."""


class Happening(Struct, frozen=True, omit_defaults=True):
    """What there is to say of an event, by its type."""

    event: ClassVar[Type]


class Registered(Happening, frozen=True):
    """A server has come into the registry, or has registered at another address, or its heartbeats have come back."""

    event = "server_registered"

    kind: str | UnsetType = UNSET
    role: str | UnsetType = UNSET
    state: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    """Its address, which is what an operator approves of."""
    returned: bool = False
    """Whether it had departed by its silence."""


class Departed(Happening, frozen=True):
    """A server was taken out of the registry, or its heartbeats have stopped."""

    event = "server_departed"

    reason: Literal["silent", "deregistered"]
    by: str | UnsetType = UNSET
    """Who took it out."""
    silent_seconds: int | UnsetType = UNSET


class HealthChanged(Happening, frozen=True):
    """A server's health status has changed, by what `source` says of it."""

    event = "health_status_changed"

    before: Status = field(name="from")
    after: Status = field(name="to")
    source: Finder
    reason: str
    since: float | UnsetType = UNSET
    """When that was, which may be before it could be told: seconds since 1970, as the status has it."""


class Exceeded(Happening, frozen=True):
    """A figure of a server has gone over the bound that `scaling` sets."""

    event = "load_threshold_exceeded"

    figure: str
    value: float
    threshold: float


class FailoverInitiated(Happening, frozen=True):
    """A server is given up."""

    event = "failover_initiated"

    cause: Cause
    reason: str


class FailoverCompleted(Happening, frozen=True):
    """What waited there has moved: of so many models, these have no server left."""

    event = "failover_completed"

    cause: Cause
    models: int
    without_server: list[str]


class Rebalanced(Happening, frozen=True):
    """The shares of each server, by model: of the first hundred of the models that are concerned."""

    event = "cluster_rebalanced"

    cause: Literal["failover", "recovery"]
    shares: Mapping[str, Mapping[str, float]]


class Drained(Happening, frozen=True):
    """An operator lets a server get nothing new: its state is no longer `active`."""

    event = "server_drained"

    state: str
    before: str
    by: str


class Enabled(Happening, frozen=True):
    """An operator lets a server get requests again."""

    event = "server_enabled"

    state: str
    before: str
    by: str


class BudgetWarning(Happening, frozen=True):
    """So many hundredths of a budget are spent in its period. It is of no server."""

    event = "budget_warning"

    holder: str
    """A key's id, or `team:` and a team's slug."""
    period: Period
    begins: str | None
    """The period's first day (UTC), which a total has not."""
    unit: Literal["tokens", "money"]
    share: int


Data = TypeVar("Data", bound=Happening)


class Told(Struct, Generic[Data], frozen=True, tag_field="type"):
    """An event as it is told."""

    id: int
    server_id: str
    at: datetime
    data: Data


class ServerRegistered(Told[Registered], frozen=True, tag=Registered.event):
    """A server has come, or moved."""


class ServerDeparted(Told[Departed], frozen=True, tag=Departed.event):
    """A server has gone."""


class HealthStatusChanged(Told[HealthChanged], frozen=True, tag=HealthChanged.event):
    """A server's health status is another one."""


class LoadThresholdExceeded(Told[Exceeded], frozen=True, tag=Exceeded.event):
    """A server has too much to do."""


class FailoverHasBegun(Told[FailoverInitiated], frozen=True, tag=FailoverInitiated.event):
    """A server is given up."""


class FailoverIsComplete(Told[FailoverCompleted], frozen=True, tag=FailoverCompleted.event):
    """A server has been given up."""


class ClusterRebalanced(Told[Rebalanced], frozen=True, tag=Rebalanced.event):
    """The work is shared in another way."""


class ServerDrained(Told[Drained], frozen=True, tag=Drained.event):
    """An operator has taken a server out of the rotation."""


class ServerEnabled(Told[Enabled], frozen=True, tag=Enabled.event):
    """An operator has put a server back into the rotation."""


class BudgetRunsOut(Told[BudgetWarning], frozen=True, tag=BudgetWarning.event):
    """A budget comes to its end, or has."""


Event = (
    ServerRegistered
    | ServerDeparted
    | HealthStatusChanged
    | LoadThresholdExceeded
    | FailoverHasBegun
    | FailoverIsComplete
    | ClusterRebalanced
    | ServerDrained
    | ServerEnabled
    | BudgetRunsOut
)


class Standing(Struct, frozen=True):
    """How a server is."""

    server_id: str
    state: str
    health_status: Status
    health_source: Finder
    health_reason: str
    since: float | None
    """When the health status became what it is: seconds since 1970."""


class Snapshot(Struct, frozen=True, tag_field="type", tag="snapshot"):
    """All servers as they are at the beginning, in as many messages as that takes."""

    servers: list[Standing]
    more: bool
    """Whether another one follows."""


class ServerStatus(Standing, frozen=True, tag_field="type", tag="server_status"):
    """A server is another way, or new."""


class ServerGone(Struct, frozen=True, tag_field="type", tag="server_gone"):
    """A server is in the registry no more."""

    server_id: str


class EventsLive(Struct, frozen=True, tag_field="type", tag="events_live", omit_defaults=True):
    """Whether events come as they happen. Where they do, those after `since` follow, whatever was in between."""

    live: bool
    since: int | None = None


class EventTooLarge(Struct, frozen=True, tag_field="type", tag="event_too_large"):
    """An event that no message can hold; `GET /orchestration/events` has it."""

    id: int
    server_id: str
    event: Type


Message = Event | Snapshot | ServerStatus | ServerGone | EventsLive | EventTooLarge
