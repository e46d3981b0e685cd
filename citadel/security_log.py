"""The security log: who came in, who was refused, and why, in one vocabulary (docs/security.md#the-security-log).

Its lines stand among all others, as those of `citadel.security`. Of each event a process writes at most `MOST` in a
second; the others it counts, and says how many they were when the second is over. So no flood of refusals is slowed by
telling them, or fills a disk, and one kind hides no other.
"""

import logging
import re
import time
from collections import Counter
from enum import StrEnum
from threading import Lock, Timer

import structlog

MOST = 10
LONGEST = 200
"""Characters of what somebody has sent, or was told."""
SECRETS = re.compile(r"\b(ct[ds]_[0-9A-Za-z]{10}_)[0-9A-Za-z]+|\beyJ[\w-]+(?:\.[\w-]*){1,2}")
"""API keys and signing secrets, of which the public beginning is told, and tokens."""

log = structlog.get_logger("citadel.security")


class Event(StrEnum):
    """All that is told."""

    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGN_IN_LOCKED = "sign_in_locked"
    SESSION_ENDED = "session_ended"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a name of what happens
    FACTOR_CHANGED = "second_factor_changed"
    CREDENTIAL_REFUSED = "credential_refused"
    ACCESS_DENIED = "access_denied"
    REQUEST_REFUSED = "request_refused"
    FORM_REFUSED = "form_refused"
    RATE_EXCEEDED = "rate_exceeded"
    ADDRESS_REFUSED = "address_refused"


ORDINARY = frozenset({Event.SIGNED_IN, Event.SESSION_ENDED, Event.PASSWORD_CHANGED, Event.FACTOR_CHANGED})
"""What happens every day; all else is a warning."""


class _Bound:
    """How many lines there were of each event in this second, whichever thread they came from."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._second = 0
        self._told: Counter[Event] = Counter()
        self._untold: Counter[Event] = Counter()

    def admits(self, event: Event) -> bool:
        """Whether one more may be written; else it is counted."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second = second
                self._told.clear()
            self._told[event] += 1
            if self._told[event] <= MOST:
                return True
            if not self._untold:
                Timer(1.0, self._say).start()
            self._untold[event] += 1
            return False

    def _say(self) -> None:
        with self._lock:
            untold = {str(event): count for event, count in self._untold.items()}
            self._untold.clear()
        log.warning("security_events_not_told", **untold)


_bound = _Bound()


def is_due(event: Event) -> bool:
    """Whether a line of it is to be written now, by `write`; else it has been counted, and nothing is left to do."""
    return _bound.admits(event)


def write(event: Event, **details: object) -> None:
    """Writes a line; texts are shortened, and secrets of ours taken out, whoever has put them there."""
    told = {name: _told(value) for name, value in details.items() if value not in (None, "")}
    log.log(logging.INFO if event in ORDINARY else logging.WARNING, str(event), **told)


def tell(event: Event, **details: object) -> None:
    """Writes a line, or counts it."""
    if is_due(event):
        write(event, **details)


def _told(value: object) -> object:
    if not isinstance(value, str):
        return value
    return SECRETS.sub(lambda found: f"{found[1] or ''}…", value[: 10 * LONGEST])[:LONGEST]
