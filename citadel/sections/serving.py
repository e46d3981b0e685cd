"""The sections about serving: where Citadel listens, what it lets through, how long anything may take."""

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, field_validator

from citadel.sections.section import USUAL_PORTS, ConfigError, Count, Positive, Seconds, Section, networks

ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServerSection(Section):
    """Where this Citadel listens, and with how many web workers."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8002
    workers: Positive = 1
    allowed_hosts: tuple[str, ...] = ("*",)
    """Host names that the console answers to, beside that of `public_url`."""
    public_url: str | None = None
    """Where browsers find the console when a proxy stands in front."""
    hsts: Literal["off", "host", "subdomains"] = "subdomains"
    """What browsers are told to reach through TLS alone from now on, where `public_url` is https."""
    trusted_proxies: tuple[str, ...] = ()
    """Whose word is taken for where a request comes from, and for its client's certificate: `loopback`, `private`, or
    networks in CIDR notation."""

    @property
    def url(self) -> str:
        """Its address for clients on this machine."""
        everywhere = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here
        host = everywhere.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_exposed(self) -> bool:
        """Whether others than the users of this machine may reach it."""
        return bool(self.public_url or self.trusted_proxies) or not _is_loopback(self.host)

    @field_validator("trusted_proxies")
    @classmethod
    def _names_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return networks(names)

    @field_validator("public_url")
    @classmethod
    def _as_browsers_say_it(cls, url: str | None) -> str | None:
        """As the header Origin has it: no slash at the end, no port that goes without saying."""
        if not url:
            return None
        found = ORIGIN.fullmatch(url.lower())
        if not found:
            raise ConfigError("it must be like https://citadel.example, without a path")
        scheme, host, port = found.groups()
        return f"{scheme}://{host}" if port in (None, str(USUAL_PORTS[scheme])) else f"{scheme}://{host}:{port}"


class GlobalLimit(Section):
    """What all clients together may send: a bucket of `burst`, refilled at `requests_per_minute`. 0 is no limit."""

    requests_per_minute: Count = 1000
    burst: Count = 100


class QuotaLimit(Section):
    """What may be sent in any 60 s, and at once. 0 is no limit."""

    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrent: Count = 0


class ClientLimit(QuotaLimit):
    """The same of one key that has no limits of its own."""

    requests_per_minute: Count = 60
    concurrent: Count = 5


CLASS_LIMITS = {
    "heavyweight": QuotaLimit(requests_per_minute=10, concurrent=2),
    "lightweight": QuotaLimit(requests_per_minute=30, concurrent=5),
}


class LimitsSection(Section):
    """Rate limits."""

    global_: GlobalLimit = Field(default=GlobalLimit(), alias="global")
    client: ClientLimit = ClientLimit()
    classes: dict[str, QuotaLimit] = CLASS_LIMITS
    """Of one key for the models of a class, where it has no limit of its own. Each number goes over the default's."""
    models: dict[str, QuotaLimit] = {}
    """Of all keys together for a model."""
    usual_answer: Positive = 1000
    """Tokens that are reserved for an answer whose request does not say how long it may be."""
    others_per_minute: Count = 600
    """Requests of one key in any 60 s to what is not inference, or is refused before it, but what is probed. And of one
    address, where nobody proves anything. Of what a fleet says of its servers each worker takes twenty times as many.
    """


class CacheSection(Section):
    """The response cache; times to live in seconds."""

    chat_ttl: Positive = 3600
    embeddings_ttl: Positive = 86400
    models_ttl: Positive = 300
    """For which a server's list of models is believed; then it is asked anew, and one that comes back at once."""
    max_memory_mb: Positive = 512
    max_entry_kb: Positive = 1024


class TimeoutsSection(Section):
    """Time limits, in seconds."""

    client: Seconds = 300
    """A plain answer, from the request's first byte to the answer."""
    stream: Seconds = 3600
    stream_idle: Seconds = 30
    """A stream in which nothing comes; any answer of which its client takes next to nothing."""
    stream_silence: Seconds = 15
    """Headers of a stream are held so long; then comment lines come so often."""
    head: Seconds = 10
    """A request's headers, from their first byte to the last."""
    body: Seconds = 30
    database: Seconds = 30
    cache: Seconds = 5
    cache_request: Seconds = 0.1
    """Redis on the path of a request."""
    server_connect: Seconds = 2
    keep_alive: Seconds = 65
    drain: Seconds = 60
    """Running answers get so long after SIGTERM."""


class PoolsSection(Section):
    """Idle connections kept; never limits on traffic."""

    database: Positive = 5
    http: Positive = 50
    """To all servers together, by one web worker."""
    per_server: Positive = 30


class LogSection(Section):
    """Logs on standard error, one JSON object a line."""

    level: Literal["debug", "info", "warning", "error"] = "info"
