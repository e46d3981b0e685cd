"""An issuer of tokens: real keys, a real HTTP server that publishes them, and a count of who asked."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "citadel-of-the-tests"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Issuer:
    """Signs tokens, and publishes the keys that verify them under their ids."""

    def __init__(self) -> None:
        self.keys: dict[str, Private] = {
            "rsa": rsa.generate_private_key(65537, 2048),
            "ec": ec.generate_private_key(ec.SECP256R1()),
        }
        self.asked: list[float] = []
        """When somebody asked for the keys, by the monotonic clock."""
        self.url = ""
        self.keys_url = ""
        """Where it says that its keys are, and where it sends those who ask at `/moved`."""

    def token(self, kid: str = "rsa", *, algorithm: str = "RS256", headers: Any = None, **claims: Any) -> str:
        """A good token unless something else is said; a claim of None is left out."""
        now = time.time()
        usual = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "somebody",
            "iat": now,
            "exp": now + 300,
            "team": "token-team",
        }
        said = {name: value for name, value in (usual | claims).items() if value is not None}
        for moment in ("iat", "exp", "nbf"):
            if isinstance(said.get(moment), float):
                said[moment] = int(said[moment])
        return jwt.encode(said, self.keys[kid], algorithm, {"kid": kid, **(headers or {})})

    def public(self, kid: str) -> bytes:
        """The public key as PEM."""
        form, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.keys[kid].public_key().public_bytes(form, kind)

    def key_set(self) -> bytes:
        """What it publishes (RFC 7517)."""
        return json.dumps({"keys": [self._jwk(kid) for kid in self.keys]}).encode()

    def _jwk(self, kid: str) -> dict[str, Any]:
        algorithm = {"rsa": jwt.algorithms.RSAAlgorithm, "ec": jwt.algorithms.ECAlgorithm}[kid.partition("-")[0]]
        public: Any = self.keys[kid].public_key()
        return {**json.loads(algorithm.to_jwk(public)), "kid": kid, "use": "sig"}

    @contextmanager
    def serving(self) -> Iterator["Issuer"]:
        """While it answers at its `url`."""
        issuer = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/.well-known/openid-configuration":
                    keys = issuer.keys_url or f"{issuer.url}/keys"
                    body = json.dumps({"issuer": issuer.url, "jwks_uri": keys}).encode()
                elif self.path == "/moved":
                    self.send_response(302)
                    self.send_header("location", issuer.keys_url)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                elif self.path == "/keys":
                    issuer.asked.append(time.monotonic())
                    body = issuer.key_set()
                else:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def part(content: Any) -> str:
    """A part of a token."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed_with_secret(head: Any, claims: Any, secret: bytes) -> str:
    """A token by HMAC, whatever its head says; libraries refuse to make what nobody should take."""
    text = f"{part(head)}.{part(claims)}"
    return f"{text}.{part(hmac.digest(secret, text.encode(), hashlib.sha256))}"
