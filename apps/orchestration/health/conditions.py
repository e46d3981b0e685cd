"""How the servers are: what stands on the board and what is known of their load, as values. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Status = Literal["healthy", "degraded", "unhealthy"]
Source = Literal["traffic", "probe", "heartbeat", "webhook"]
Finder = Literal["traffic", "probe", "heartbeat"]
"""Who found a status, as the API tells it: there what a webhook says of a server counts as the server's own word."""
Bar = Literal["", "failing", "departed", "webhook"]
"""Why a server is out whatever it answers to what was under way: too much fails there, it has departed, or a webhook
says so; empty: it is not. Against all but the webhook's word a trial proves something.
"""
UNANSWERED = "timeout"
"""Why traffic has a server out on which requests wait in vain, which any answer disproves."""
ENABLED = "enabled"
"""Why a source says that a server is well for which an operator's word stands: nobody has looked."""
AHEAD_MS = 1_000
"""A time of the board that lies further ahead was set before Redis's clock went back: it counts as past."""


class Record(msgspec.Struct, frozen=True):
    """How a server is, as it stands on the board. Times in milliseconds since the epoch, by Redis's clock."""

    status: Status = "healthy"
    source: Source = "probe"
    reason: str = ""
    since: int = 0
    """When the status became what it is."""
    returned: int = 0
    """When it was last unhealthy no more; 0: it never was."""
    sources: dict[str, dict[str, Any]] = {}
    """What each source said last: `status`, `reason`, `at`, and what it wants to remember."""

    @property
    def told(self) -> str:
        """In words: the status, and who found it why where it isn't good."""
        return self.status if self.status == "healthy" else f"{self.status} ({self.finder}: {self.reason})"

    @property
    def finder(self) -> Finder:
        """Who found the status."""
        return finder(self.source)

    def memory(self, source: Source) -> dict[str, Any]:
        """What a source said last; empty when it has said nothing yet."""
        return self.sources.get(source, {})

    @property
    def is_gone(self) -> bool:
        """Whether a server is out by more than the traffic's opinion: by its probes, by its own or a webhook's word, or
        as it refuses connections.
        """
        return self.status == "unhealthy" and any(
            said["status"] == "unhealthy" and (source != "traffic" or said["reason"] == "refused")
            for source, said in self.sources.items()
        )

    @property
    def bar(self) -> Bar:
        """Whose word no answer to a request that was under way takes back."""
        if self.memory("webhook").get("status") == "unhealthy":
            return "webhook"
        if self.memory("heartbeat").get("status") == "unhealthy":
            return "departed"
        traffic = self.memory("traffic")
        return "failing" if traffic.get("status") == "unhealthy" and traffic.get("reason") != UNANSWERED else ""


def finder(source: Source) -> Finder:
    """As whose word the API tells what a source says."""
    return "heartbeat" if source == "webhook" else source


class Untold(msgspec.Struct, frozen=True):
    """A change of a server's status of which there is no event yet. `at` as in its record's `since`."""

    server: str
    before: Status
    status: Status
    source: Source
    reason: str
    at: int


class Load(msgspec.Struct, frozen=True):
    """What a server has to do, as far as it is known. Shares from 0 to 1."""

    cpu: float | None = None
    memory: float | None = None
    gpu: float | None = None
    in_flight: int | None = None
    queue: int | None = None
    models: tuple[str, ...] | None = None
    """Those in memory; None where the server doesn't tell."""
    any_name: bool | None = None
    """Whether what it has in memory answers to any name."""
    at: int = 0
    """When it was told: milliseconds since the epoch, by Redis's clock."""

    def has(self, model: str) -> bool | None:
        """Whether a model is in memory; None where the server doesn't tell."""
        if self.models is None:
            return None
        return model in self.models or (self.any_name is True and bool(self.models))

    def over(self, older: "Load") -> "Load":
        """This, completed by what it leaves open and `older` knows."""
        told = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(older, **told)


def last_seen(record: Record, load: Load) -> float:
    """When a probe last succeeded, a request was last answered well or the server last told its load, in milliseconds
    since the epoch; 0: never.
    """
    traffic = record.memory("traffic")
    is_good = traffic.get("status") == "healthy" and traffic.get("reason") != ENABLED
    good = traffic.get("at") if is_good else 0
    times = (record.memory("probe").get("last_seen"), good, load.at)
    return max((when for when in times if isinstance(when, int | float)), default=0)


def response_ms(record: Record) -> float | None:
    """How long the last probe took, where it was answered and was more than a bare connection."""
    told = record.memory("probe").get("response_ms")
    return told if isinstance(told, int | float) else None


HEALTHY = Record()
NOT_KNOWN = Record("degraded", reason="not_known")
"""How a server is told to be of which nobody can know yet how it is."""
UNKNOWN = Load()
Records = Mapping[str, Record]
Loads = Mapping[str, Load]


class Known(msgspec.Struct, frozen=True):
    """What is known of how the servers are."""

    records: Records = {}
    loads: Loads = {}
    unsaid: Record = HEALTHY
    """How one is of which the board says nothing."""

    def record(self, server_id: str) -> Record:
        """How a server is."""
        return self.records.get(server_id, self.unsaid)

    def load(self, server_id: str) -> Load:
        """What it has to do, as far as it is known."""
        return self.loads.get(server_id, UNKNOWN)
