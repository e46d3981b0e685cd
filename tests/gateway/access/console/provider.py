"""An OpenID provider that says of whoever comes what a test wants it to say."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT, SECRET = "citadel", "a-secret-of-the-client"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Provider:
    """What it says: claims of the ID token and beside it; `token` replaces claims, None leaves one out."""

    def __init__(self, url: str):
        self.url = url
        self.asked: list[str] = []
        self.questions: dict[str, dict[str, str]] = {}
        self.say()

    def say(self, person: dict[str, Any] | None = None, beside: dict[str, Any] | None = None, **token: Any) -> None:
        """From now on."""
        self.person = person or {"sub": secrets.token_hex(4)}
        self.beside = self.person if beside is None else beside
        self.token = token

    def id_token(self, nonce: str) -> str:
        """Of who is here, for who has asked with that nonce."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce}
        claims |= {**self.person, **self.token}
        return jwt.encode({k: v for k, v in claims.items() if v is not None}, KEY, "RS256", headers={"kid": "k"})

    @classmethod
    @contextmanager
    def start(cls) -> Iterator["Provider"]:
        """Serves until the end."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.provider = cls(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.provider  # type: ignore[attr-defined]
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    @property
    def provider(self) -> Provider:
        return self.server.provider  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        self.provider.asked.append(where.path)
        if where.path == "/.well-known/openid-configuration":
            url = self.provider.url
            ends = {"authorization": "authorize", "token": "token", "userinfo": "userinfo"}
            self._give(
                {"issuer": url, "jwks_uri": f"{url}/keys"} | {f"{k}_endpoint": f"{url}/{v}" for k, v in ends.items()}
            )
        elif where.path == "/authorize":
            self._authorize({name: values[0] for name, values in parse_qs(where.query).items()})
        elif where.path == "/userinfo" and self.headers["authorization"] == "Bearer access":
            self._give(self.provider.beside)
        else:
            self._give({}, 404)

    def do_POST(self) -> None:
        self.provider.asked.append(self.path)
        sent = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        verifier = sent.get("code_verifier", [""])[0]
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = self.provider.questions.pop(sent["code"][0], {})
        if digest != asked.get("code_challenge") or sent.get("client_secret") != [SECRET]:
            self._give({"error": "invalid_grant"}, 400)
            return
        self._give(
            {
                "access_token": "access",
                "token_type": "Bearer",
                "id_token": self.provider.id_token(asked.get("nonce", "")),
            }
        )

    def _authorize(self, asked: dict[str, str]) -> None:
        assert asked["code_challenge_method"] == "S256"
        assert (asked["client_id"], asked["response_type"]) == (CLIENT, "code")
        code = secrets.token_hex(8)
        self.provider.questions[code] = asked
        self.send_response(302)
        self.send_header("location", f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}")
        self.send_header("content-length", "0")
        self.end_headers()

    def _give(self, what: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass
