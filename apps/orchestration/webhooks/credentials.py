"""How a webhook proves who sends it: by a key of ours, by a bearer of its own type, or by a signature."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping

from apps.orchestration.models import Hook
from apps.orchestration.models.subscription import new_salt
from apps.orchestration.webhooks import signing
from citadel.caller import STRANGER, Caller
from citadel.errors import Unauthenticated

TOKEN_PREFIX = "whk_"  # noqa: S105  # what all of them begin with
NEEDED = "A webhook needs an API key, the bearer of its own type, or a signature (Standard Webhooks)."


def new_token(hook: Hook) -> str:
    """A new bearer of a hook's own, which ends the one before; shown this once and kept nowhere."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    hook.token_digest = _digest(token.encode())
    hook.save(update_fields=["token_digest"])
    return token


def new_secret(hook: Hook, installation: str) -> str:
    """A new secret for a hook's signatures, which ends the one before."""
    hook.salt = new_salt()
    hook.save(update_fields=["salt"])
    return signing.secret_of(installation, hook.salt)


def prove(hook: Hook | None, caller: Caller, headers: Mapping[bytes, bytes], body: bytes, installation: str) -> str:
    """Who sends this, in a word; Unauthenticated where nothing proves it.

    A type that is not there or not enabled has no credentials of its own.
    """
    if caller is not STRANGER:
        return f"key {caller.key_id}"
    if hook and hook.salt and b"webhook-signature" in headers:
        signing.check(signing.secret_of(installation, hook.salt), headers, body, time.time())
        return "signature"
    if hook and hook.token_digest and hmac.compare_digest(hook.token_digest, _digest(_bearer(headers))):
        return "bearer"
    raise Unauthenticated(NEEDED)


def offers_proof(headers: Mapping[bytes, bytes]) -> bool:
    """Whether there is anything of a type's own to be proved by, so that it is worth to look up the type."""
    return b"webhook-signature" in headers or _bearer(headers).startswith(TOKEN_PREFIX.encode())


def _bearer(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _digest(token: bytes) -> str:
    """Of a random token of 256 bits a plain digest is enough."""
    return hashlib.sha256(token).hexdigest()
