"""Signs the load generator's requests, in both forms that Citadel takes (docs/access.md)."""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from enum import Enum

Sign = Callable[[bytes], bytes]
"""From a body to the header lines that sign a request with it."""


class Form(Enum):
    """How a request is signed."""

    SIMPLE = "simple"
    MESSAGE = "message"
    """RFC 9421, with hmac-sha256."""


def signer(form: Form, secret: str, path: str, url: str) -> Sign:
    """What signs POSTs to `path`, of which `url` is the whole address, with a key's signing secret."""
    public, key = secret.split("_")[1], secret.encode()

    def simple(body: bytes) -> bytes:
        now, nonce = int(time.time()), secrets.token_hex(16)
        text = f"citadel-hmac-sha256\nPOST\n{path}\n{now}\n{nonce}\n{hashlib.sha256(body).hexdigest()}"
        made = hmac.digest(key, text.encode(), "sha256").hex()
        lines = f"x-citadel-key: {public}\r\nx-citadel-timestamp: {now}\r\nx-citadel-nonce: {nonce}\r\n"
        return f"{lines}x-citadel-signature: {made}\r\n".encode()

    def message(body: bytes) -> bytes:
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        said = f';created={int(time.time())};nonce="{secrets.token_hex(16)}";keyid="{public}"'
        said = '("@method" "@target-uri" "content-digest")' + said
        lines = f'"@method": POST\n"@target-uri": {url}\n"content-digest": {digest}\n"@signature-params": {said}'
        made = base64.b64encode(hmac.digest(key, lines.encode(), "sha256")).decode()
        return f"content-digest: {digest}\r\nsignature-input: sig1={said}\r\nsignature: sig1=:{made}:\r\n".encode()

    return simple if form is Form.SIMPLE else message
