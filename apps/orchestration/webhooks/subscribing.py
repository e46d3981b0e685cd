"""Who gets events: subscriptions are made, changed and ended here, by API and console alike."""

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import connection, transaction

from apps.orchestration.models import Delivery, Subscription
from citadel import config
from citadel.addresses import AddressRefused, NoAddress, of_webhooks
from citadel.errors import BadRequest, Conflict, NotFound
from citadel.sections import USUAL_PORTS

MOST = 100
"""Subscriptions that there may be: each event costs a row for each of them."""


def check_address(url: str) -> None:
    """ValidationError unless events may be sent there; checked again whenever they are."""
    parts = urlsplit(url)
    try:
        of_webhooks(config.load()).check(parts.hostname or "", parts.port or USUAL_PORTS[parts.scheme])
    except (AddressRefused, NoAddress) as refused:
        raise ValidationError({"url": f"{refused}: see the setting security.webhook_networks"}) from None


def subscribe(by: str, fields: Mapping[str, Any]) -> Subscription:
    """A new subscription; BadRequest names the field that is wrong, Conflict says that there are too many."""
    subscription = Subscription(created_by=by)
    _take_over(subscription, fields)
    with transaction.atomic():
        _take_turns()
        if Subscription.objects.count() >= MOST:
            raise Conflict(f"There are {MOST} subscriptions, and no more may be.")
        subscription.save()
    return subscription


def change(subscription: Subscription, fields: Mapping[str, Any]) -> Subscription:
    """Changes some fields and gives the subscription as it is then; BadRequest names the field that is wrong, NotFound
    when it has ended meanwhile.
    """
    _take_over(subscription, fields)
    keep(subscription, fields)
    return find(subscription.subscription_id)


def keep(subscription: Subscription, names: Collection[str]) -> None:
    """Writes the named fields alone: others may have got another secret meanwhile, or heard that the receiver is gone.
    One that is enabled again begins with a clean slate, and gets what waited for it.
    """
    fields = {name: getattr(subscription, name) for name in names}
    if fields.get("enabled"):
        fields |= {"failures": 0, "disabled_reason": ""}
    Subscription.objects.filter(pk=subscription.pk).update(**fields)


def end(subscription: Subscription) -> None:
    """Ends a subscription. It is locked first: an event of this moment waits, and makes no delivery for it then."""
    with transaction.atomic():
        for found in Subscription.objects.select_for_update().filter(pk=subscription.pk):
            found.delete()


def find(subscription_id: str) -> Subscription:
    """The subscription of that id, or NotFound."""
    found = None
    if "\0" not in subscription_id:
        found = Subscription.objects.filter(subscription_id=subscription_id).first()
    if found is None:
        raise NotFound(f"There is no subscription '{subscription_id[:64]}'.")
    return found


def find_delivery(subscription: Subscription, delivery_id: str) -> Delivery:
    """One of its deliveries, or NotFound."""
    number = int(delivery_id) if delivery_id.isascii() and delivery_id.isdecimal() and len(delivery_id) < 19 else 0
    found = subscription.deliveries.filter(pk=number).first()
    if found is None:
        raise NotFound(f"There is no delivery '{delivery_id[:64]}' of this subscription.")
    return found


def _take_over(subscription: Subscription, fields: Mapping[str, Any]) -> None:
    """Sets fields to what is good for them, else BadRequest. A name is looked up for it, in seconds: lock nothing."""
    for name, value in fields.items():
        setattr(subscription, name, value)
    try:
        subscription.clean_fields(exclude={one.name for one in subscription._meta.fields} - set(fields))
        if "url" in fields:
            check_address(subscription.url)
    except ValidationError as error:
        name, messages = next(iter(error.message_dict.items()))
        raise BadRequest(f"Invalid value for '{name}': {messages[0]}.", param=name) from None


def _take_turns() -> None:
    """Nobody else counts subscriptions until this transaction is over."""
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE orchestration_subscription IN SHARE ROW EXCLUSIVE MODE")
