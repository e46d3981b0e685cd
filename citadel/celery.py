"""Celery: what runs behind the requests' back. Queues: `work`, `discovery`, which servers that don't answer may fill,
and `probes`, which nothing else may delay.

`celery -A citadel.celery worker -Q work,discovery`, `… -Q probes`, `celery -A citadel.celery beat`. Any number of each
may run. Who reads two queues takes from them in turn.
"""

import logging
import os
import ssl
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "citadel.settings")

from celery import Celery
from celery.app.amqp import AMQP
from celery.signals import beat_init, setup_logging, worker_ready
from kombu import Connection

from citadel import config, logs, presence
from citadel.redis_address import Address

TICK = 1.0
"""Seconds between two ticks of the fleet's clock (apps/orchestration/tasks.py)."""
REDIS_SECONDS = 10.0
"""Redis may take so long for an answer to a worker or the beat; then they connect anew."""
RECONNECT_SECONDS = 5.0
"""They wait so long at most between two attempts to connect; Celery's half a minute would pass without a probe."""


def broker(url: str) -> dict[str, Any]:
    """Celery's settings for the state Redis at `url`: its transport says redis+socket:// for a socket, and has its own
    way of saying how certificates are checked.
    """
    there = Address(url)
    secret = f":{quote(there.password, safe='')}" if there.password else ""
    login = f"{quote(there.username or '', safe='')}{secret}@" if there.username or secret else ""
    host = f"[{there.host}]" if ":" in there.host else there.host
    if there.path:
        address = f"redis+socket://{login}{quote(there.path)}?virtual_host={there.database}"
    else:
        address = f"{'rediss' if there.tls else 'redis'}://{login}{host}:{there.port}/{there.database}"
    return {"broker_url": address, "broker_use_ssl": _certificates(url) if there.tls else None}


def _certificates(url: str) -> dict[str, Any]:
    options = dict(parse_qsl(urlsplit(url).query))
    if options.get("ssl_cert_reqs") == "none":
        return {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    checked: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return checked | {name: value for name, value in options.items() if name == "ssl_ca_certs"}


class Broker(Connection):
    """The connection that a worker or the beat has, which the transport's options don't reach."""

    def ensure_connection(self, *how: Any, **options: Any) -> Any:
        """Connects, however many attempts that takes."""
        return super().ensure_connection(*how, **{"interval_max": RECONNECT_SECONDS, **options})


class Messaging(AMQP):
    """Celery's, with these connections."""

    Connection = Broker


_URL = config.load().redis_url

app = Celery("citadel", amqp=Messaging)
app.conf.update(
    **(broker(_URL) if _URL else {}),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "global_keyprefix": "celery:",
        "visibility_timeout": 3600,
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
        "interval_max": RECONNECT_SECONDS,
    },
    task_default_queue="work",
    task_routes={"fleet.*": {"queue": "probes"}, "servers.learn": {"queue": "discovery"}},
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,  # nobody needs to command workers through Redis
    worker_cancel_long_running_tasks_on_connection_loss=True,
    beat_scheduler="citadel.beat:Scheduler",
    beat_max_loop_interval=1,
    # No task expires: that would be decided by two machines' clocks. A tick that comes late finds its number taken.
    beat_schedule={
        "fleet": {"task": "fleet.tick", "schedule": TICK, "args": (TICK,)},
        "webhooks": {"task": "webhooks.deliver", "schedule": TICK},
        "old webhooks": {"task": "webhooks.prune", "schedule": 3600.0},
        "old sessions": {"task": "console.prune", "schedule": 3600.0},
    },
    timezone="UTC",
)
app.autodiscover_tasks(["apps.orchestration", "apps.orchestration.webhooks", "apps.gateway.access.console"])


@setup_logging.connect
def _as_everywhere(**_details: object) -> None:
    """Celery's own way of logging is not asked: JSON lines, like all other processes'."""
    logs.configure(config.load().log.level)
    for name in ("celery.beat", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of each tick at the level of news


@worker_ready.connect
def _worker_ready(sender: Any, **_details: object) -> None:
    presence.tell_ready(config.load().home, sender.hostname.partition("@")[0])


@beat_init.connect
def _beat_ready(**_details: object) -> None:
    presence.tell_ready(config.load().home, "beat")
