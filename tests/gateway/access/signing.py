"""Signs requests as a client would, by hand: tests bend what a library would refuse to send."""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

COVERED = ("@method", "@target-uri", "content-digest")


def simple(
    secret: str, method: str, target: str, body: bytes = b"", *, at: float | None = None, nonce: str | None = None
) -> dict[str, str]:
    """The headers of the simple form; `target` is path and query."""
    timestamp, nonce = str(int(time.time() if at is None else at)), nonce or secrets.token_hex(16)
    lines = ("citadel-hmac-sha256", method, target, timestamp, nonce, hashlib.sha256(body).hexdigest())
    return {
        "x-citadel-key": secret.split("_")[1],
        "x-citadel-timestamp": timestamp,
        "x-citadel-nonce": nonce,
        "x-citadel-signature": hmac.digest(secret.encode(), "\n".join(lines).encode(), "sha256").hex(),
    }


def digest(body: bytes, algorithm: str = "sha-256") -> str:
    """The member of a Content-Digest."""
    found = hashlib.new(algorithm.replace("-", ""), body).digest()
    return f"{algorithm}=:{base64.b64encode(found).decode()}:"


def message(
    signer: str | bytes | Ed25519PrivateKey,
    method: str,
    url: str,
    body: bytes = b"",
    *,
    covered: Sequence[str] = COVERED,
    headers: Mapping[str, str] | None = None,
    **said: Any,
) -> dict[str, str]:
    """The headers of RFC 9421, sig1; `said` are parameters other than the usual ones, None leaves one out."""
    sent = {"content-digest": digest(body), **(headers or {})}
    usual = {"created": int(time.time()), "nonce": secrets.token_hex(16)}
    if isinstance(signer, str):
        usual["keyid"] = signer.split("_")[1]
    parameters = {name: value for name, value in {**usual, **said}.items() if value is not None}
    where = urlsplit(url)
    target = where.path + (f"?{where.query}" if where.query else "")
    derived = {
        "@method": method,
        "@target-uri": f"{where.scheme}://{where.netloc}{target}",
        "@authority": where.netloc,
        "@scheme": where.scheme,
        "@request-target": target,
        "@path": where.path,
        "@query": f"?{where.query}",
    }
    values = {**sent, **derived}
    inner = " ".join(f'"{name}"' for name in covered)
    signature_parameters = f"({inner})" + "".join(
        f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"' for name, value in parameters.items()
    )
    lines = [f'"{name}": {values.get(name, "").strip()}' for name in covered]
    base = "\n".join((*lines, f'"@signature-params": {signature_parameters}')).encode()
    if isinstance(signer, Ed25519PrivateKey):
        made = signer.sign(base)
    else:
        made = hmac.digest(signer.encode() if isinstance(signer, str) else signer, base, "sha256")
    return {
        **sent,
        "signature-input": f"sig1={signature_parameters}",
        "signature": f"sig1=:{base64.b64encode(made).decode()}:",
    }
