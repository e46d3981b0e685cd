"""What a client calls this Citadel: the origin (RFC 6454) of its request, of which a proxy in front may hide a part."""

from typing import NamedTuple

from citadel.sections import USUAL_PORTS

SCHEMES = {"ws": "http", "wss": "https"}
"""What opens a WebSocket is a request, and comes from pages of these."""


class Origin(NamedTuple):
    """As browsers and `server.public_url` say it: in small letters, without a port that goes without saying."""

    scheme: str
    host: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}"


def origin_of(scheme: str, host: bytes, public_url: str | None) -> Origin:
    """That of a request or a WebSocket with this scheme and header Host.

    The scheme is that of `public_url` where it comes to that host: the proxy there has spoken TLS for Citadel.
    """
    scheme, authority = SCHEMES.get(scheme, scheme), host.strip().lower().decode("latin-1")
    if public_url:
        public_scheme, _, public_host = public_url.partition("://")
        if authority in (public_host, f"{public_host}:{USUAL_PORTS[public_scheme]}"):
            scheme = public_scheme
    return Origin(scheme, authority.removesuffix(f":{USUAL_PORTS[scheme]}"))
