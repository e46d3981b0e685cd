"""What the security log hears of requests and sockets that are refused: why, who has asked, from where and for what."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from apps.gateway.access.bearer import credential
from apps.gateway.access.keys.shape import id_of, well_formed
from apps.gateway.access.oauth.refusals import Refused
from apps.gateway.access.signatures import messages, simple
from apps.gateway.runtime import Runtime
from citadel import security_log
from citadel.caller import STRANGER, Caller
from citadel.errors import (
    CitadelError,
    Forbidden,
    LimitExceeded,
    TooLarge,
    TooSlow,
    Unauthenticated,
    UnsupportedCoding,
    Withheld,
)
from citadel.security_log import Event

BEYOND_BOUNDS = frozenset({"json_too_deep", "json_too_large", "invalid_json"})
OF_THE_SERVERS = "server_busy"
"""The 429 of servers that have enough to do, which is no limit of who asks."""
KEY_ID = re.compile(rb'keyid="([0-9A-Za-z]{1,32})"')


def tell(
    runtime: Runtime,
    scope: MutableMapping[str, Any],
    headers: Mapping[bytes, bytes],
    error: CitadelError,
    caller: Caller | None = None,
) -> None:
    """Tells of an error that somebody gets, where it is one of these; `caller` is who has asked, if that is known."""
    event = event_of(error)
    if event is None or not security_log.is_due(event):
        return
    known = caller if caller is not None and caller is not STRANGER else None
    security_log.write(
        event,
        code=error.code,
        reason=error.message,
        who=error.whose or (known and (known.key_id or known.name)) or claimed(headers),
        team=known and known.team,
        address=str(runtime.proxies.client(scope, headers) or ""),
        method=scope.get("method"),
        path=scope["path"],
    )


def event_of(error: CitadelError) -> Event | None:
    """What it is called in the log; None for what is none of its matter."""
    if isinstance(error, Unauthenticated) or (isinstance(error, Refused) and error.status_code == 401):
        return Event.CREDENTIAL_REFUSED
    if isinstance(error, Forbidden | Withheld) or error.code == "unauthorized_client":
        return Event.ACCESS_DENIED
    if isinstance(error, TooLarge | TooSlow | UnsupportedCoding) or error.code in BEYOND_BOUNDS:
        return Event.REQUEST_REFUSED
    is_limit = error.status_code == LimitExceeded.status and error.code != OF_THE_SERVERS
    return Event.RATE_EXCEEDED if is_limit else None


def claimed(headers: Mapping[bytes, bytes]) -> str:
    """The public id of the key that a request names, whether it proves to hold it or not; nothing where it has none."""
    if simple.KEY in headers:
        return headers[simple.KEY].decode("latin-1")
    if found := KEY_ID.search(headers.get(messages.INPUT, b"")):
        return found[1].decode()
    try:
        key = credential(headers)
    except Unauthenticated:
        return ""
    return id_of(key.decode()) if well_formed(key) else ""
