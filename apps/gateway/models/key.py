"""A team's API key: only a keyed digest of it is kept."""

from collections.abc import Collection
from datetime import UTC, datetime
from ipaddress import IPv6Network, ip_network

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from apps.gateway.access.keys.credentials import plain_fingerprint, plain_public_key
from apps.gateway.models.team import Team
from citadel.permissions import PERMISSIONS

MAPPED = IPv6Network("::ffff:0:0/96")
"""IPv4 addresses as IPv6 writes them (RFC 4291, 2.5.5.2): callers have those addresses, not these."""
MOST_CERTIFICATES = 16
"""Tied to a key: the one in use, the one that follows it, and some for its replicas."""


def check_names(value: object) -> None:
    """ValidationError unless it is a list of names."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValidationError('must be a list of names, such as ["llama3.2"]')


def check_scopes(value: object) -> None:
    """ValidationError unless it is a list of permissions."""
    check_names(value)
    if unknown := sorted(set(_texts(value)) - PERMISSIONS):
        raise ValidationError(f"{unknown[0]!r} is none of the permissions {', '.join(sorted(PERMISSIONS))}")


def check_addresses(value: object) -> None:
    """ValidationError unless it is a list of addresses and networks."""
    check_names(value)
    for text in _texts(value):
        try:
            network = ip_network(text)
        except ValueError as error:
            raise ValidationError(f"{error}; write an address or a network like 10.1.0.0/16") from None
        if isinstance(network, IPv6Network) and network.overlaps(MAPPED) and network.prefixlen >= MAPPED.prefixlen:
            raise ValidationError(f"{text!r} stands for IPv4 addresses: write those")


def check_fingerprints(value: object) -> None:
    """ValidationError unless it is a list of fingerprints of certificates, and not of many."""
    check_names(value)
    if len(_texts(value)) > MOST_CERTIFICATES:
        raise ValidationError(f"must be {MOST_CERTIFICATES} at most")
    for text in _texts(value):
        try:
            plain_fingerprint(text)
        except ValueError as error:
            raise ValidationError(f"{text[:80]!r} is {error}") from None


def check_public_key(value: str) -> None:
    """ValidationError unless it is the public key of an Ed25519 pair."""
    try:
        plain_public_key(value)
    except ValueError as error:
        raise ValidationError(f"this is {error}") from None


def check_end(value: datetime) -> None:
    """ValidationError unless it is a moment to come that databases and programs can count with."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValidationError("must lie between the years 1 and 9999 of UTC") from None
    if value <= timezone.now():
        raise ValidationError("must lie in the future: revoke a key that is to end at once")


def _texts(value: object) -> list[str]:
    return value if isinstance(value, list) else []


class Key(models.Model):
    """One API key. `key_id` is public and stands in logs; a limit of 0 is none, of null the configured default."""

    class Role(models.TextChoices):
        """What the key's holder is."""

        ADMIN = "admin"
        OPERATOR = "operator"
        SERVER = "server"
        AUDITOR = "auditor"
        DEVELOPER = "developer"
        OWNER = "owner"
        MEMBER = "member"
        VIEWER = "viewer"

    class Priority(models.TextChoices):
        """What a request may claim in waiting rooms, the lowest first."""

        LOW = "low"
        NORMAL = "normal"
        HIGH = "high"
        CRITICAL = "critical"

    key_id = models.CharField(max_length=32, unique=True)
    digest = models.BinaryField(max_length=32, unique=True)
    name = models.CharField(max_length=128)
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="keys")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.DEVELOPER)
    allowed_models = models.JSONField(
        null=True, blank=True, validators=[check_names], help_text="Names of the models it may use; empty for all."
    )
    scopes = models.JSONField(
        null=True,
        blank=True,
        validators=[check_scopes],
        help_text="Permissions that it has at most; empty for all of its role.",
    )
    addresses = models.JSONField(
        null=True,
        blank=True,
        validators=[check_addresses],
        help_text="Addresses and networks from which it may be used; empty for anywhere.",
    )
    servers = models.JSONField(
        null=True,
        blank=True,
        validators=[check_names],
        help_text="Ids of the servers that it may register and operate, where its role lets it; empty for all.",
    )
    certificates = models.JSONField(
        null=True,
        blank=True,
        validators=[check_fingerprints],
        help_text="SHA-256 fingerprints of client certificates that prove its holder, where a proxy reports them.",
    )
    public_key = models.CharField(
        max_length=200,
        null=True,
        blank=True,
        validators=[check_public_key],
        help_text="Ed25519 public key of who signs requests by a private key of the own.",
    )
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    concurrent = models.PositiveIntegerField(null=True, blank=True)
    max_priority = models.CharField(
        max_length=8,
        choices=Priority,
        default=Priority.HIGH,
        db_default=Priority.HIGH,
        help_text="The highest that its requests may claim; one that asks for more is lowered to it.",
    )
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField(null=True, blank=True, validators=[check_end])
    revoked = models.DateTimeField(null=True, blank=True)

    former_digest = models.BinaryField(max_length=32, unique=True, null=True, editable=False)
    """Of the secret before the last rotation, good until `former_until`."""
    former_until = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["-created"]

    def __str__(self) -> str:
        return f"{self.team}/{self.name} ({self.key_id})"

    def clean_fields(self, exclude: Collection[str] | None = None) -> None:
        """Also writes its end in UTC and what proves its holder plainly; ValidationError where a certificate is tied to
        another key.
        """
        super().clean_fields(exclude)
        if self.expires and "expires" not in (exclude or ()):
            self.expires = self.expires.astimezone(UTC)  # PostgreSQL knows no offsets of 16 hours and more
        if "public_key" not in (exclude or ()):
            self.public_key = plain_public_key(self.public_key) if self.public_key else None
        if self.certificates and "certificates" not in (exclude or ()):
            self.certificates = sorted({plain_fingerprint(text) for text in self.certificates})
            others = Key.objects.filter(revoked=None).exclude(pk=self.pk)
            for fingerprint in self.certificates:
                if others.filter(certificates__contains=[fingerprint]).exists():
                    raise ValidationError({"certificates": f"{fingerprint} is tied to another key"})

    @property
    def state(self) -> str:
        """Whether it opens anything: `in force`, `expired` or `revoked`."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= timezone.now() else "in force"


class KeyUse(models.Model):
    """When a key was last used. Apart from the key: writing it changes nothing that workers keep a copy of."""

    key = models.OneToOneField(Key, on_delete=models.CASCADE, primary_key=True, related_name="use")
    last_used = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.key_id}: {self.last_used}"
