"""Events to subscribers: signed, sent again until they are taken, given up at last and kept for a replay.

A trigger makes a delivery for each event and subscriber. Here whatever is due is claimed, by moving on when it is due
again; so a process that dies in between loses nothing, and a receiver may get an event twice, with the same id.
"""

import asyncio
import random
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import httpx
import msgspec
import structlog
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from apps.orchestration.models import Delivery, HookMark, ReceivedWebhook, Subscription
from apps.orchestration.models.subscription import new_salt
from apps.orchestration.webhooks import signing
from citadel import __version__
from citadel.addresses import AddressRefused, CheckedTransport, of_webhooks
from citadel.sections import Config, WebhooksSection

log = structlog.get_logger("citadel.webhooks")

AT_ONCE = 400
"""Deliveries on their way at the most, each with a connection."""
OF_ONE = 10
"""Of them to one subscriber, who gets others when these have been answered."""
LOOK_EVERY = 1.0
"""Seconds after which what has become due is looked for, while answers are awaited."""
ROUND = 20.0
"""Seconds after which the next process takes over, so that each ends when it is to."""
GRACE = timedelta(days=1)
"""For which the secret before a rotation signs too."""
LONGEST_WAIT = 3600.0
"""Seconds for which a receiver may ask to be left alone."""
MOST_RECEIVED = 10_000
"""Incoming webhooks that are kept, whatever their age."""
LOCK = 0x43_69_74_57
"""Of PostgreSQL, for the one who sends."""
GONE = 410

_CLAIM = """
UPDATE orchestration_delivery SET next_at = now() + %s * interval '1 second', attempts = attempts + 1
WHERE state = 'pending' AND next_at <= now() AND id IN (
    SELECT due.id FROM orchestration_subscription s CROSS JOIN LATERAL (
        SELECT d.id, d.next_at FROM orchestration_delivery d
        WHERE d.subscription_id = s.id AND d.state = 'pending' AND d.next_at <= now() ORDER BY d.id LIMIT %s
    ) AS due WHERE s.enabled AND s.id <> ALL(%s) ORDER BY due.next_at LIMIT %s
) RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: the receiver's status, or why there is none."""

    status: int | None = None
    error: str = ""
    retry_after: float = 0.0

    @property
    def taken(self) -> bool:
        """Whether the receiver has the event."""
        return self.status is not None and 200 <= self.status < 300


def deliver_due(config: Config) -> int:
    """Sends whatever is due, unless another process is at it; gives how many deliveries were tried."""
    with asyncio.Runner() as runner:
        sending = Sending(config, runner)
        try:
            with _alone() as alone:
                over = time.monotonic() + ROUND
                while alone and time.monotonic() < over and sending.begin():
                    sending.wait(LOOK_EVERY)
            while sending.running:  # for which nobody else need wait
                sending.wait(LOOK_EVERY)
        finally:
            sending.close()
    return sending.tried


class Sending:
    """Deliveries on their way. Each subscriber gets its own as fast as it answers, whatever the others do."""

    def __init__(self, config: Config, runner: asyncio.Runner):
        self.tried = 0
        self.running: dict[asyncio.Task[Outcome], Delivery] = {}
        self._config = config
        self._runner = runner

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        """Made when there is something to send: it takes 20 ms, and mostly there is nothing."""
        transport = CheckedTransport(of_webhooks(self._config), connections=AT_ONCE)
        timeout = self._config.webhooks.timeout
        return httpx.AsyncClient(transport=transport, follow_redirects=False, timeout=timeout)

    def begin(self) -> bool:
        """Sends what is due to those for whom nothing is on its way; gives whether anything is."""
        claimed = _claim(self._config.webhooks, self._busy(), AT_ONCE - len(self.running))
        for delivery in claimed:
            task = self._runner.get_loop().create_task(_send(self._client, delivery, self._config))
            self.running[task] = delivery
        self.tried += len(claimed)
        return bool(self.running)

    def wait(self, within: float) -> None:
        """Keeps what comes of them, until somebody has answered all that he got or so many seconds are over."""
        busy, end = self._busy(), time.monotonic() + within
        while self.running and busy == self._busy() and (left := end - time.monotonic()) > 0:
            wait = asyncio.wait(self.running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            done, _ = self._runner.run(wait)
            for task in done:
                settle(self.running.pop(task), task.result(), self._config.webhooks)

    def close(self) -> None:
        """Lets go of what was opened."""
        if "_client" in self.__dict__:
            self._runner.run(self._client.aclose())

    def _busy(self) -> set[int]:
        return {delivery.subscription_id for delivery in self.running.values()}


def settle(delivery: Delivery, outcome: Outcome, webhooks: WebhooksSection) -> None:
    """Keeps what came of an attempt, and says when the next one is, if there is one. Times are the database's."""
    fields: dict[str, Any] = {"last_status": outcome.status, "last_error": outcome.error}
    if outcome.taken:
        fields |= {"state": Delivery.State.DELIVERED, "ended": Now()}
        Subscription.objects.filter(pk=delivery.subscription_id).exclude(failures=0).update(failures=0)
    elif outcome.status == GONE or delivery.attempts > len(webhooks.retry_delays):
        fields |= {"state": Delivery.State.DEAD, "ended": Now()}
        log.warning("webhook_given_up", delivery=str(delivery), status=outcome.status, reason=outcome.error)
        _count_failure(delivery.subscription, outcome, webhooks)
    else:
        wait = pause(webhooks.retry_delays[delivery.attempts - 1], outcome.retry_after, random.random())  # noqa: S311  # no secret
        fields |= {"next_at": Now() + timedelta(seconds=wait)}
    Delivery.objects.filter(pk=delivery.pk).update(**fields)


def pause(delay: float, retry_after: float, chance: float) -> float:
    """Seconds until the next attempt: the delay give or take a fifth, so that many do not come back together; longer
    where the receiver asks for it.
    """
    return max(delay * (0.8 + 0.4 * chance), min(retry_after, LONGEST_WAIT))


def replay(subscription: Subscription, delivery_id: int | None = None) -> int:
    """Sends a delivery anew, or all that were given up; gives how many."""
    chosen = subscription.deliveries.exclude(state=Delivery.State.PENDING)
    chosen = chosen.filter(pk=delivery_id) if delivery_id is not None else chosen.filter(state=Delivery.State.DEAD)
    return chosen.update(state=Delivery.State.PENDING, attempts=0, next_at=Now(), ended=None)


def rotate(subscription: Subscription) -> None:
    """Gives a subscription another secret; the old one signs for another day, so that nobody misses an event."""
    subscription.previous_salt, subscription.rotated = subscription.salt, datetime.now(UTC)
    subscription.salt = new_salt()
    subscription.save(update_fields=["salt", "previous_salt", "rotated"])


def secrets_of(subscription: Subscription, installation: str) -> list[str]:
    """The secrets that sign what is sent to a subscriber now, the newest first."""
    salts = [subscription.salt]
    if subscription.rotated and subscription.previous_salt and datetime.now(UTC) - subscription.rotated < GRACE:
        salts.append(subscription.previous_salt)
    return [signing.secret_of(installation, salt) for salt in salts]


def prune(webhooks: WebhooksSection) -> None:
    """Forgets what is older than `webhooks.retention_days`, and of what came in the oldest where it is too much."""
    before = datetime.now(UTC) - timedelta(days=webhooks.retention_days)
    Delivery.objects.filter(created__lt=before).delete()
    HookMark.objects.filter(at__lt=before).delete()
    ReceivedWebhook.objects.filter(at__lt=before).delete()
    oldest = ReceivedWebhook.objects.order_by("-id").values_list("id", flat=True)[MOST_RECEIVED:][:1]
    ReceivedWebhook.objects.filter(id__lte=max(oldest, default=0)).delete()


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether nobody else sends meanwhile: ticks come faster than slow receivers answer, and need not pile up."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))
        [alone] = cursor.fetchone()
        try:
            yield alone
        finally:
            if alone:
                cursor.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))


def _claim(webhooks: WebhooksSection, busy: Collection[int], most: int) -> list[Delivery]:
    """What is due, of subscribers that are not `busy`, with who is to get it. It is due again when this process should
    have told what came of it.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_CLAIM, (3 * webhooks.timeout + 30, OF_ONE, list(busy), most))
        claimed = [row[0] for row in cursor.fetchall()]
    return list(Delivery.objects.filter(pk__in=claimed).select_related("subscription").order_by("id"))


async def _send(client: httpx.AsyncClient, delivery: Delivery, config: Config) -> Outcome:
    """Within its time; nothing is followed to another address."""
    body = msgspec.json.encode(delivery.payload)
    secrets = secrets_of(delivery.subscription, config.secret)
    now = int(datetime.now(UTC).timestamp())
    headers = {
        "content-type": "application/json",
        "user-agent": f"Citadel/{__version__}",
        **signing.headers(secrets, delivery.message_id, now, body),
    }
    try:
        # Of the answer only the head is read: what a receiver has to say is its status.
        async with (
            asyncio.timeout(config.webhooks.timeout),
            client.stream("POST", delivery.subscription.url, content=body, headers=headers) as answer,
        ):
            error = "" if answer.is_success else f"HTTP {answer.status_code}"
            return Outcome(answer.status_code, error, _retry_after(answer.headers.get("retry-after", "")))
    except AddressRefused as refused:
        return Outcome(error=str(refused)[:200])
    except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as failure:
        return Outcome(error=type(failure).__name__)


def _retry_after(told: str) -> float:
    return float(told) if told.isascii() and told.isdecimal() and len(told) < 8 else 0.0


def _count_failure(subscription: Subscription, outcome: Outcome, webhooks: WebhooksSection) -> None:
    """A receiver that has gone, or takes nothing any more, is left alone."""
    rows = Subscription.objects.filter(pk=subscription.pk, enabled=True)
    rows.update(failures=F("failures") + 1)
    if outcome.status == GONE:
        reason = "The receiver says that it is gone (410)."
    else:
        rows = rows.filter(failures__gte=webhooks.disable_after)
        reason = f"{webhooks.disable_after} events in a row could not be delivered."
    if rows.update(enabled=False, disabled_reason=reason):
        log.warning("webhook_disabled", subscription=subscription.subscription_id, reason=reason)
