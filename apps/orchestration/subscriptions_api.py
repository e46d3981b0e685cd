"""`/orchestration/webhooks`: who gets the fleet's events, and what was sent to them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from ninja import Router

from apps.orchestration.messages import Type
from apps.orchestration.models import Delivery, Subscription
from apps.orchestration.models.subscription import LONGEST_URL
from apps.orchestration.requests import FleetRequest
from apps.orchestration.webhooks import outgoing, signing, subscribing
from citadel.answer import Answer, json_answer
from citadel.database import in_thread
from citadel.decoding import decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NumberCursor, Page
from citadel.permissions import OPERATE_FLEET, SEE_FLEET, require

router = Router(tags=["Webhooks"])


Url = Annotated[str, msgspec.Meta(max_length=LONGEST_URL, pattern="^https?://[!-~]+$")]
Types = Annotated[list[Type], msgspec.Meta(max_length=100)]
Text = Annotated[str, msgspec.Meta(max_length=200, pattern="^[^\\u0000]*$")]


class Subscribing(msgspec.Struct, forbid_unknown_fields=True):
    """A new subscription: where to, and to which types of events; none named are all."""

    url: Url
    events: Types = []
    description: Text = ""


class Changing(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be another than it is."""

    url: Url | UnsetType = UNSET
    events: Types | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class SubscriptionRow(msgspec.Struct, omit_defaults=True):
    """A subscription. `secret` is shown when it is new, and never again; times in seconds since the epoch."""

    id: str
    url: str
    events: list[str]
    description: str
    enabled: bool
    disabled_reason: str
    failures: int
    created: float
    secret: str | None = None


class SubscriptionRows(msgspec.Struct):
    """A page of them."""

    data: list[SubscriptionRow]
    next: str | None


class DeliveryRow(msgspec.Struct):
    """An event on its way to a subscriber. Times in seconds since the epoch."""

    id: str
    message_id: str
    event_id: int
    type: str
    state: str
    attempts: int
    created: float
    next_attempt: float | None
    ended: float | None
    last_status: int | None
    last_error: str


class DeliveryRows(msgspec.Struct):
    """A page of them, newest first."""

    data: list[DeliveryRow]
    next: str | None


class Replayed(msgspec.Struct):
    """How many deliveries will be sent again."""

    replayed: int


class Unsubscribed(msgspec.Struct):
    """It is gone."""

    status: str
    id: str


@router.get("", openapi_extra=answers(SubscriptionRows, BadRequest, Unavailable))
async def subscriptions(request: FleetRequest, limit: Limit = USUAL, cursor: NumberCursor | None = None) -> Answer:
    """Who gets events."""
    require(request.auth, SEE_FLEET)
    page = Page.asked(limit, cursor)
    rows = await in_thread(_subscriptions, page)
    return json_answer(page.of(rows, _row, lambda row: str(row.pk)))


@router.post("", openapi_extra=answers(SubscriptionRow, BadRequest, Conflict, Unavailable, body=Subscribing))
async def subscribe(request: FleetRequest) -> Answer:
    """A new subscription. Its secret, by which deliveries are signed (Standard Webhooks), is in this answer alone."""
    require(request.auth, OPERATE_FLEET)
    fields = msgspec.structs.asdict(decode(request.body, Subscribing))
    return _with_secret(request, await in_thread(subscribing.subscribe, request.auth.key_id, fields))


@router.get("/{subscription_id}", openapi_extra=answers(SubscriptionRow, NotFound, Unavailable))
async def subscription(request: FleetRequest, subscription_id: str) -> Answer:
    """One subscription."""
    require(request.auth, SEE_FLEET)
    return json_answer(_row(await in_thread(subscribing.find, subscription_id)))


@router.patch(
    "/{subscription_id}", openapi_extra=answers(SubscriptionRow, BadRequest, NotFound, Unavailable, body=Changing)
)
async def change_subscription(request: FleetRequest, subscription_id: str) -> Answer:
    """Changes what is named; enabled again, it gets what waited for it too."""
    require(request.auth, OPERATE_FLEET)
    told = msgspec.structs.asdict(decode(request.body, Changing, needed=True))
    fields = {name: value for name, value in told.items() if value is not UNSET}
    return json_answer(_row(await in_thread(_change, subscription_id, fields)))


@router.delete("/{subscription_id}", openapi_extra=answers(Unsubscribed, NotFound, Unavailable))
async def unsubscribe(request: FleetRequest, subscription_id: str) -> Answer:
    """Ends a subscription; what was not delivered yet never will be."""
    require(request.auth, OPERATE_FLEET)
    await in_thread(_delete, subscription_id)
    return json_answer(Unsubscribed("deleted", subscription_id))


@router.post("/{subscription_id}/rotate", openapi_extra=answers(SubscriptionRow, NotFound, Unavailable))
async def rotate_subscription_secret(request: FleetRequest, subscription_id: str) -> Answer:
    """A new secret, in this answer alone. For a day deliveries are signed by the old one too."""
    require(request.auth, OPERATE_FLEET)
    return _with_secret(request, await in_thread(_rotate, subscription_id))


@router.post("/{subscription_id}/replay", openapi_extra=answers(Replayed, NotFound, Unavailable))
async def replay_subscription(request: FleetRequest, subscription_id: str) -> Answer:
    """Sends all that was given up again, each under the id that it had."""
    require(request.auth, OPERATE_FLEET)
    return json_answer(Replayed(await in_thread(_replay_all, subscription_id)))


@router.get("/{subscription_id}/deliveries", openapi_extra=answers(DeliveryRows, BadRequest, NotFound, Unavailable))
async def deliveries(
    request: FleetRequest,
    subscription_id: str,
    state: Literal["pending", "delivered", "dead"] | None = None,
    limit: Limit = USUAL,
    cursor: NumberCursor | None = None,
) -> Answer:
    """What was sent, newest first; by `state` (`pending`, `delivered`, `dead`) where one is named."""
    require(request.auth, SEE_FLEET)
    page = Page.asked(limit, cursor)
    rows = await in_thread(_deliveries, subscription_id, state, page)
    return json_answer(page.of(rows, _delivery_row, lambda row: str(row.pk)))


@router.post(
    "/{subscription_id}/deliveries/{delivery_id}/replay", openapi_extra=answers(DeliveryRow, NotFound, Unavailable)
)
async def replay_delivery(request: FleetRequest, subscription_id: str, delivery_id: str) -> Answer:
    """Sends one event again, under the id that it had."""
    require(request.auth, OPERATE_FLEET)
    return json_answer(_delivery_row(await in_thread(_replay_one, subscription_id, delivery_id)))


def _subscriptions(page: Page) -> list[Subscription]:
    return list(Subscription.objects.filter(pk__gt=page.number or 0)[: page.limit + 1])


def _change(subscription_id: str, fields: dict[str, Any]) -> Subscription:
    return subscribing.change(subscribing.find(subscription_id), fields)


def _delete(subscription_id: str) -> None:
    subscribing.end(subscribing.find(subscription_id))


def _rotate(subscription_id: str) -> Subscription:
    found = subscribing.find(subscription_id)
    outgoing.rotate(found)
    return found


def _replay_all(subscription_id: str) -> int:
    return outgoing.replay(subscribing.find(subscription_id))


def _replay_one(subscription_id: str, delivery_id: str) -> Delivery:
    found = subscribing.find_delivery(subscribing.find(subscription_id), delivery_id)
    outgoing.replay(found.subscription, found.pk)
    found.refresh_from_db()
    return found


def _deliveries(subscription_id: str, state: str | None, page: Page) -> list[Delivery]:
    rows = subscribing.find(subscription_id).deliveries.all()
    if state is not None:
        rows = rows.filter(state=state)
    if page.number is not None:
        rows = rows.filter(pk__lt=page.number)
    return list(rows[: page.limit + 1])


def _row(found: Subscription, secret: str | None = None) -> SubscriptionRow:
    return SubscriptionRow(
        found.subscription_id,
        found.url,
        found.events,
        found.description,
        found.enabled,
        found.disabled_reason,
        found.failures,
        found.created.timestamp(),
        secret,
    )


def _delivery_row(found: Delivery) -> DeliveryRow:
    return DeliveryRow(
        str(found.pk),
        found.message_id,
        found.event_id,
        found.type,
        found.state,
        found.attempts,
        found.created.timestamp(),
        found.next_at.timestamp() if found.state == Delivery.State.PENDING else None,
        found.ended.timestamp() if found.ended else None,
        found.last_status,
        found.last_error,
    )


def _with_secret(request: FleetRequest, found: Subscription) -> Answer:
    return json_answer(_row(found, signing.secret_of(request.runtime.config.secret, found.salt)))
