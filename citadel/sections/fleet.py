"""The sections about the fleet: how its servers are found, watched and chosen, and what is told of them."""

from typing import Annotated, Literal

from pydantic import Field

from citadel.sections.section import Count, Positive, Seconds, Section, Share


class HealthSection(Section):
    """How servers are watched; times in seconds unless they say otherwise."""

    interval: Seconds = 30
    """Between two probes of a server."""
    timeout: Seconds = 10
    """A probe that takes longer has failed."""
    fast_interval: Seconds = 2
    """Between two probes of a server in doubt."""
    connect_interval: Seconds = 5
    """Between two bare connections to a server, which find a silent death."""
    unhealthy_after: Positive = 3
    """Failures in a row."""
    healthy_after: Positive = 5
    """Successes in a row, for a server that was unhealthy."""
    slow_ms: Positive = 1000
    """A probe that takes longer makes its server degraded."""
    critical_ms: Positive = 5000
    """A probe that takes longer makes its server degraded so far that it gets next to nothing."""
    heartbeat_interval: Seconds = 30
    """Between two heartbeats of a server that sends them; after three without one it has departed."""


class FailoverSection(Section):
    """When a server that is down is given up; in seconds."""

    delay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5
    """From the moment in which it became unhealthy."""
    detection: Seconds = 15
    """From the last good sign of an unhealthy server; then the delay is over in any case."""


class ScalingSection(Section):
    """From where on there is too much to do: figures whose crossing is told as `load_threshold_exceeded`."""

    cpu: Share = 0.85
    memory: Share = 0.80
    queue: Positive = 50
    """Requests that wait on a server, or in Citadel for a place on it."""
    response_ms: Positive = 3000
    """The average answer of the last minutes."""
    failed: Share = 0.05
    """Of the requests of the last minutes."""


class EventsSection(Section):
    """What is kept of what happened to the fleet."""

    retention_days: Positive = 90


class RegistrySection(Section):
    """How servers come into the registry."""

    approval: bool = False
    """Whether a server that registers itself waits until an operator enables it."""
    forget_departed: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 24
    """Hours after which a server that registered itself and has departed is taken out; 0: never."""


class RoutingSection(Section):
    """How a request finds a server that answers."""

    strategy: Literal["weighted_round_robin", "least_busy", "peak_ewma", "affinity"] = "weighted_round_robin"
    """How the servers of a model are ordered, where its class does not say."""
    slow_start: Seconds = 30
    """Until a server that was out has all of its weight again."""
    attempts: Positive = 3
    """Servers tried for one request before the client gets an error."""
    first_byte_timeout: Seconds = 300
    """Seconds that a server may take for the first byte of its answer, while it is not known or must load the model."""
    first_byte_floor: Seconds = 5
    """Seconds that it may take at least when it is known: four times its p99 where that is more."""
    retry_budget: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of extra load that further attempts may add (and ten a second besides)."""
    hedge_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of extra load that backup requests may add."""
    queue_size: Count = 100
    """Requests that may wait for a place on the servers of a model."""
    queue_timeout: Seconds = 30
    """Seconds for which one may wait."""
    workload_lease: Seconds = 60
    """Seconds for which a place is held for a workload that is not used."""
    eject_after: Positive = 5
    """Failures in a row after which a server gets no more traffic (a refused connection ejects at once)."""
    max_backoff: Seconds = 30
    """Longest pause, in seconds, between two trials of an ejected server while others serve its models."""


class WebhooksSection(Section):
    """How events are sent to subscribers, and how long is kept what came and went; times in seconds."""

    timeout: Seconds = 10
    """A subscriber that takes longer has not got the event."""
    retry_delays: tuple[Seconds, ...] = (5, 30, 120, 600, 3600, 14400, 43200)
    """Between one attempt and the next; after the last of them the event is given up."""
    disable_after: Positive = 10
    """Events given up in a row after which a subscription is disabled."""
    retention_days: Positive = 7
    """For which deliveries, in and out, are kept."""
