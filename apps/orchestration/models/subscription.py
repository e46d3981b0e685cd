"""Webhooks that go out: who wants to hear of events, and what was sent to whom."""

import secrets
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, ProhibitNullCharactersValidator
from django.db import models

from apps.orchestration.messages import TYPES

LONGEST_URL = 2000


def check_types(value: Any) -> None:
    """ValidationError unless it is a list of types of events."""
    if not isinstance(value, list) or not all(kind in TYPES for kind in value):
        raise ValidationError(f"a list of types of events: {', '.join(TYPES)}")


def check_url(value: str) -> None:
    """ValidationError unless it is a web address without a password in it."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not value.isascii() or not value.isprintable() or " " in value:
        raise ValidationError("an address like https://receiver.example/events")
    if parts.username or parts.password or parts.fragment:
        raise ValidationError("an address without user, password and fragment: deliveries are signed instead")


def new_id() -> str:
    """A subscription's public id."""
    return f"sub_{secrets.token_hex(8)}"


def new_salt() -> str:
    """What makes a secret another one than all others."""
    return secrets.token_hex(16)


class Subscription(models.Model):
    """A receiver of events. Its secret is made of the salt and the installation's own, and kept nowhere."""

    subscription_id = models.CharField(max_length=32, unique=True, default=new_id, editable=False)
    url = models.CharField(max_length=LONGEST_URL, validators=[check_url, MaxLengthValidator(LONGEST_URL)])
    events = models.JSONField(
        default=list, blank=True, validators=[check_types], help_text="Types it wants to hear of; empty: all."
    )
    description = models.CharField(max_length=200, blank=True, validators=[ProhibitNullCharactersValidator()])
    enabled = models.BooleanField(default=True)
    disabled_reason = models.CharField(max_length=200, blank=True, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Events given up in a row.")
    salt = models.CharField(max_length=64, default=new_salt, editable=False)
    previous_salt = models.CharField(max_length=64, blank=True, editable=False)
    rotated = models.DateTimeField(null=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.subscription_id


class Delivery(models.Model):
    """One event for one subscriber. A trigger makes it in the transaction of the event: none is ever forgotten."""

    class State(models.TextChoices):
        """What became of it."""

        PENDING = "pending"
        DELIVERED = "delivered"
        DEAD = "dead", "given up"

    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="deliveries")
    event_id = models.BigIntegerField()
    type = models.CharField(max_length=40)
    payload = models.JSONField()
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    attempts = models.PositiveIntegerField(default=0)
    created = models.DateTimeField(auto_now_add=True, db_index=True)
    next_at = models.DateTimeField(help_text="When it is tried again.")
    ended = models.DateTimeField(null=True)
    last_status = models.PositiveSmallIntegerField(null=True)
    last_error = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(
                fields=["subscription", "id"],
                condition=models.Q(state="pending"),
                name="orchestration_delivery_pending",
            ),
            models.Index(fields=["subscription", "-id"], name="orchestration_delivery_of_sub"),
        ]

    def __str__(self) -> str:
        return self.message_id

    @property
    def message_id(self) -> str:
        """The same at each attempt, so that a receiver can tell a second one."""
        return f"msg_{self.subscription_id}_{self.event_id}"
