"""The sections that say who gets in: bounds on strangers, tokens, certificates, and the console's people."""

import re
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from citadel.sections.section import ConfigError, Positive, Section, networks

HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")

SHORTEST_WORD = 3

SignatureAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Of two keys, a private and a public one: what is signed with a shared secret is never taken from others."""
TokenRole = Literal["admin", "operator", "auditor", "developer", "owner", "member", "viewer"]
ConsoleRole = Literal["admin", "operator", "auditor", "developer"]


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
        return networks(names)


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
    typed: bool = False
    """Whether each of its tokens must say in its head that it is an access token (`at+jwt`, RFC 9068)."""
    team: str | None = None
    """The team of all who come with its tokens."""
    team_claim: str | None = None
    """The claim that names the team, where it isn't one for all; by its name or by a path with dots."""
    role: TokenRole | None = None
    """The role of who has none of `roles`; without one they are refused."""
    roles_claim: str | None = None
    """The claim that names groups or roles, likewise: a text or a list of texts."""
    roles: dict[str, TokenRole] = {}
    """What these are here; of several the first counts."""

    @model_validator(mode="after")
    def _has_a_team(self) -> Self:
        if (self.team is None) == (self.team_claim is None):
            raise ConfigError(f"the issuer {self.issuer} needs a team or a team_claim, and not both")
        return self

    @model_validator(mode="after")
    def _lets_somebody_in(self) -> Self:
        if self.role is None and not (self.roles_claim and self.roles):
            raise ConfigError(f"the issuer {self.issuer} needs a roles_claim and roles, or a role for all")
        return self


class TokensSection(Section):
    """Tokens that are taken instead of a key."""

    issuers: tuple[IssuerSection, ...] = ()
    """Who makes them, beside Citadel itself: an entry for each audience."""
    lifetime: Annotated[int, Field(ge=60, le=86400)] = 3600
    """Seconds for which Citadel's own are good at most."""
    leeway: Annotated[float, Field(ge=0, le=300)] = 30
    """Seconds by which an issuer's clock may be off."""

    @field_validator("issuers")
    @classmethod
    def _are_told_apart(cls, issuers: tuple[IssuerSection, ...]) -> tuple[IssuerSection, ...]:
        for (issuer, audience), entries in Counter((one.issuer, one.audience) for one in issuers).items():
            if entries > 1:
                raise ConfigError(f"the issuer {issuer} has {entries} entries for the audience {audience}: leave one")
        return issuers


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
    """The claim that names groups or roles, by its name or by a path with dots: a text or a list of texts."""
    roles: dict[str, ConsoleRole] = {}
    """What these are here; of several the first counts."""
    role: ConsoleRole | None = None
    """The role of who has none of `roles`; without one they are not let in."""
    acr: tuple[str, ...] = ()
    """Of which the provider must say one: how strictly it has looked at who somebody is."""
    amr: tuple[str, ...] = ()
    """Of which it must say one: by what they have proved it (RFC 8176)."""
    max_age: Annotated[int, Field(ge=0)] | None = None
    """Seconds at most since they have."""

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
    password_words: tuple[str, ...] = ()
    """Names of the organisation, its products and projects, which no password holds."""
    session_idle: Annotated[int, Field(ge=1)] = 3600
    """A session that is not used ends."""
    session_lifetime: Annotated[int, Field(ge=1)] = 43_200
    """A session ends, used or not."""

    @field_validator("password_words")
    @classmethod
    def _are_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if sum(map(str.isalnum, word)) < SHORTEST_WORD:
                raise ConfigError(f"{word!r} is in too many passwords: {SHORTEST_WORD} letters or digits are the least")
        return words

    @field_validator("providers")
    @classmethod
    def _have_names_of_their_own(cls, providers: tuple[ProviderSection, ...]) -> tuple[ProviderSection, ...]:
        if len({one.name for one in providers}) < len(providers):
            raise ConfigError("each provider needs a name of its own")
        return providers
