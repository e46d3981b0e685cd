"""Who and what the running code works for: ambient, so that it need not travel through every signature."""

import itertools
import re
import secrets
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")

_PROCESS = secrets.token_hex(8)
_numbers = itertools.count()
_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


def choose_request_id(offered: bytes | None) -> str:
    """The client's own request id if it is sane (1 to 128 letters, digits and `._:/+=-`), else a new one."""
    if offered and _SANE.fullmatch(offered):
        return offered.decode("ascii")
    return f"req_{_PROCESS}{next(_numbers):08x}"
