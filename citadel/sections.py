"""The typed configuration tree: every setting with its bounds and its default.

`citadel.config` says where values come from; docs/settings.md lists them for people.
"""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator

ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?")
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
USUAL_PORTS = {"http": 80, "https": 443}

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]

SignatureAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Of two keys, a private and a public one: what is signed with a shared secret is never taken from others."""
TokenRole = Literal["admin", "operator", "auditor", "developer", "owner", "viewer"]
ConsoleRole = Literal["admin", "operator", "auditor", "developer"]

UNESCAPED = "in a user's name or password / is written %2F, ? %3F, # %23, @ %40, : %3A and % %25"
"""The most frequent mistake in an address."""


class ConfigError(ValueError):
    """The configuration can't be used; the message names the place and what to do."""


def _networks(names: tuple[str, ...]) -> tuple[str, ...]:
    from citadel.addresses import check_networks

    check_networks(names)
    return names


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Section(BaseModel):
    """A branch of the tree: frozen, and an unknown key in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSection(Section):
    """Where this Citadel listens, and with how many web workers."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8002
    workers: Positive = 1
    allowed_hosts: tuple[str, ...] = ("*",)
    """Host names that the console answers to, beside that of `public_url`."""
    public_url: str | None = None
    """Where browsers find the console when a proxy stands in front."""
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
        return _networks(names)

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
    """Of one key for the models of a class, where it has no limit of its own."""
    models: dict[str, QuotaLimit] = {}
    """Of all keys together for a model."""
    usual_answer: Positive = 1000
    """Tokens that are reserved for an answer whose request does not say how long it may be."""
    others_per_minute: Count = 600
    """Requests of one key in any 60 s to what is not inference, but heartbeats and health pages; not of machines. And
    of one address, where nobody proves anything.
    """


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


class CacheSection(Section):
    """The response cache; times to live in seconds."""

    chat_ttl: Positive = 3600
    embeddings_ttl: Positive = 86400
    models_ttl: Positive = 300
    """For which a server's list of models is believed; then it is asked anew, and one that comes back at once."""
    max_memory_mb: Positive = 512
    max_entry_kb: Positive = 1024


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


class SecuritySection(Section):
    """Bounds on what a stranger may send, and the secret everything is keyed with."""

    secret_key: SecretStr | None = None
    """Keys the digests of API keys and signs the console's sessions; at least 32 characters."""
    max_body_mb: Positive = 10
    pending_bodies_mb: Positive = 128
    """Of bodies that are not whole yet, kept by one web worker: half of it for who has proved nothing yet; at least two
    of the largest.
    """
    json_depth: Positive = 64
    json_values: Positive = 100_000
    connections: Positive = 1000
    """Open at once to one web worker, WebSockets included; it answers 503 to one more."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser; `*` allows all."""
    fleet_networks: tuple[str, ...] = ("loopback", "private")
    """Where servers of the fleet may be: `loopback`, `private`, `public`, or networks in CIDR notation."""
    webhook_networks: tuple[str, ...] = ("public",)
    """Where events may be sent to, likewise."""
    issuer_networks: tuple[str, ...] = ("public",)
    """Where issuers of tokens and the console's OpenID providers may be asked, likewise."""
    metrics_networks: tuple[str, ...] = ()
    """From where metrics and the details of health pages are seen without a key, likewise."""

    @field_validator("fleet_networks", "webhook_networks", "issuer_networks", "metrics_networks")
    @classmethod
    def _names_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _networks(names)


class IssuerSection(Section):
    """Somebody whose tokens are taken, and what they make of their holders here."""

    issuer: str
    """As its tokens say it, letter by letter."""
    audience: str
    """Whom its tokens must be meant for."""
    jwks_url: str | None = None
    """Where its keys are; where OpenID's discovery says, unless it is said here."""
    algorithms: tuple[SignatureAlgorithm, ...] = ("RS256",)
    """By which its tokens may be signed."""
    team: str | None = None
    """The team of all who come with its tokens."""
    team_claim: str | None = None
    """The claim that names the team, where it isn't one for all."""
    role: TokenRole = "developer"
    """The role of who has none of `roles`."""
    roles_claim: str | None = None
    """The claim that names groups or roles: a text or a list of texts."""
    roles: dict[str, TokenRole] = {}
    """What these are here; of several the first counts."""

    @model_validator(mode="after")
    def _has_a_team(self) -> Self:
        if (self.team is None) == (self.team_claim is None):
            raise ConfigError(f"the issuer {self.issuer} needs a team or a team_claim, and not both")
        return self


class TokensSection(Section):
    """Tokens that are taken instead of a key."""

    issuers: tuple[IssuerSection, ...] = ()
    """Who makes them, beside Citadel itself."""
    lifetime: Annotated[int, Field(ge=60, le=86400)] = 3600
    """Seconds for which Citadel's own are good at most."""
    leeway: Annotated[float, Field(ge=0, le=300)] = 30
    """Seconds by which an issuer's clock may be off."""


class CertificatesSection(Section):
    """Client certificates that a trusted proxy has verified and reports."""

    header: str | None = None
    """Where it reports them; without it none are taken."""
    form: Literal["rfc9440", "nginx", "envoy"] = "rfc9440"
    """How: as RFC 9440 writes Client-Cert, as nginx its $ssl_client_escaped_cert, as Envoy x-forwarded-client-cert."""

    @field_validator("header")
    @classmethod
    def _names_a_header(cls, name: str | None) -> str | None:
        if not name:
            return None
        if not HEADER.fullmatch(name):
            raise ConfigError("it must be a header's name, such as client-cert")
        return name.lower()


class ProviderSection(Section):
    """An OpenID provider whose people sign in to the console, and what they are there."""

    name: Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")]
    """Stands in the address that it sends people back to: `/admin/oidc/NAME/login/callback/`."""
    title: str = ""
    """Stands on the button; the name, where nothing is said."""
    issuer: Annotated[str, Field(pattern="^https?://[^/?#@]+(/[^?#]*)?$")]
    """Below it is its discovery."""
    client_id: str
    client_secret: SecretStr
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    roles_claim: str = "groups"
    """The claim that names groups or roles: a text or a list of texts."""
    roles: dict[str, ConsoleRole] = {}
    """What these are here; of several the first counts."""
    role: ConsoleRole | None = None
    """The role of who has none of `roles`; without one they are not let in."""

    @model_validator(mode="after")
    def _lets_somebody_in(self) -> Self:
        if not self.roles and self.role is None:
            raise ConfigError(f"the provider {self.name} needs roles, or a role for all of its people")
        return self


class ConsoleSection(Section):
    """Who signs in to the console, and for how long; times in seconds."""

    second_factor: Literal["auto", "required", "optional"] = "auto"
    """Whether nobody goes without; `auto`: where others than the users of this machine may reach it."""
    providers: tuple[ProviderSection, ...] = ()
    session_idle: Annotated[int, Field(ge=1)] = 3600
    """A session that is not used ends."""
    session_lifetime: Annotated[int, Field(ge=1)] = 43_200
    """A session ends, used or not."""

    @field_validator("providers")
    @classmethod
    def _have_names_of_their_own(cls, providers: tuple[ProviderSection, ...]) -> tuple[ProviderSection, ...]:
        if len({one.name for one in providers}) < len(providers):
            raise ConfigError("each provider needs a name of its own")
        return providers


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


class Config(Section):
    """The whole tree. `home` holds data, logs, secrets; the addresses are URLs of the parts Citadel stands on."""

    home: Path
    env: Literal["production", "development"] = "production"
    demo_fleet: bool = True
    database_url: str | None = None
    redis_url: str | None = None
    redis_cache_url: str | None = None
    server: ServerSection = ServerSection()
    limits: LimitsSection = LimitsSection()
    health: HealthSection = HealthSection()
    registry: RegistrySection = RegistrySection()
    routing: RoutingSection = RoutingSection()
    failover: FailoverSection = FailoverSection()
    scaling: ScalingSection = ScalingSection()
    events: EventsSection = EventsSection()
    cache: CacheSection = CacheSection()
    webhooks: WebhooksSection = WebhooksSection()
    security: SecuritySection = SecuritySection()
    tokens: TokensSection = TokensSection()
    certificates: CertificatesSection = CertificatesSection()
    console: ConsoleSection = ConsoleSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    pools: PoolsSection = PoolsSection()
    log: LogSection = LogSection()

    @field_validator("certificates")
    @classmethod
    def _come_from_a_proxy(cls, section: CertificatesSection, info: ValidationInfo) -> CertificatesSection:
        server = info.data.get("server")
        if section.header and server and not server.trusted_proxies:
            raise ConfigError("a certificate is taken from a trusted proxy alone: name it in server.trusted_proxies")
        return section

    @field_validator("database_url")
    @classmethod
    def _leads_to_postgresql(cls, url: str | None) -> str | None:
        from citadel.database import parameters

        if url:
            parameters(url)
        return url

    @field_validator("redis_url", "redis_cache_url")
    @classmethod
    def _leads_to_redis(cls, url: str | None) -> str | None:
        from citadel.redis_address import Address

        if url:
            Address(url)
        return url

    @property
    def asks_second_factor(self) -> bool:
        """Whether nobody uses the console without a second factor."""
        chosen = self.console.second_factor
        return self.server.is_exposed if chosen == "auto" else chosen == "required"

    @property
    def secret(self) -> str:
        """The secret key in the clear; ConfigError when none is set or it is too short to be one."""
        value = self.security.secret_key.get_secret_value() if self.security.secret_key else ""
        if len(value) < 32:
            wrong = "is shorter than 32 characters" if value else "is not set"
            raise ConfigError(
                f"security.secret_key {wrong}: set CITADEL_SECURITY__SECRET_KEY or put it into "
                f"{self.home}/config/secrets/citadel.yaml (mode 600); unset and without a file there, bin/run makes one"
            )
        return value
