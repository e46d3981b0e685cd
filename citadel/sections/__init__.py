"""The typed configuration tree: every setting with its bounds and its default.

`citadel.config` says where values come from; docs/settings.md lists them for people.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator

from citadel.sections.access import (
    CertificatesSection,
    ConsoleSection,
    IssuerSection,
    ProviderSection,
    SecuritySection,
    TokensSection,
)
from citadel.sections.fleet import (
    EventsSection,
    FailoverSection,
    HealthSection,
    RegistrySection,
    RoutingSection,
    ScalingSection,
    WebhooksSection,
)
from citadel.sections.section import USUAL_PORTS, ConfigError, Section
from citadel.sections.serving import (
    CacheSection,
    ClientLimit,
    GlobalLimit,
    LimitsSection,
    LogSection,
    PoolsSection,
    QuotaLimit,
    ServerSection,
    TimeoutsSection,
)

__all__ = [
    "UNESCAPED",
    "USUAL_PORTS",
    "ClientLimit",
    "Config",
    "ConfigError",
    "GlobalLimit",
    "HealthSection",
    "IssuerSection",
    "LimitsSection",
    "PoolsSection",
    "ProviderSection",
    "QuotaLimit",
    "RoutingSection",
    "ScalingSection",
    "Section",
    "SecuritySection",
    "ServerSection",
    "WebhooksSection",
]

UNESCAPED = "in a user's name or password / is written %2F, ? %3F, # %23, @ %40, : %3A and % %25"
"""The most frequent mistake in an address."""


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
