"""Logs: one JSON object a line on standard error, the request id in each."""

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

import structlog

from citadel.context import request_id

SAY_AGAIN = 60.0
"""Seconds after which a trouble that lasts is told again."""


class Trouble:
    """What may last, and is met again and again meanwhile: to be told when it begins, and then once a minute."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def is_news(self) -> bool:
        """Whether to tell of it, when it is met; who asks tells."""
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + SAY_AGAIN
        return True

    def is_over(self) -> None:
        """The next one is another."""
        self._quiet_until = 0.0


class _Seldom(logging.Filter):
    """Lets a library that tells of each attempt say so once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._trouble = Trouble()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or self._trouble.is_news()


def configure(level: str) -> None:
    """Sends our own and every library's records through the same renderer, from `level` up."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("citadel.security").setLevel(min(logging.INFO, root.level))  # which is written in any case
    for refusals in ("django.request", "django.security.csrf"):  # which the security log tells, and bounds
        logging.getLogger(refusals).setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request at the level of news
    logging.getLogger("psycopg.pool").addFilter(_Seldom())  # of each attempt to connect, in each process
    logging.getLogger("oauthlib").setLevel(logging.WARNING)  # whose debugging tells the tokens that it makes


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event
