"""Requests to the console's OpenID providers: only to addresses that were checked, without redirects, bounded.

allauth speaks to them by `requests`, and lets itself be given a session.
"""

import io
import os
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from citadel import config
from citadel.addresses import AddressRefused, NoAddress, of_issuers
from citadel.sections import USUAL_PORTS

WITHIN = 5.0
"""Seconds that a provider may take for each step of an answer, and for the whole of its body."""
LARGEST = 1_000_000
"""Bytes of an answer."""


class Session(requests.Session):
    """One that is used for one request, by nobody's proxies and credentials but our own."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = os.environ.get("SSL_CERT_FILE") or True  # as for servers
        for scheme in USUAL_PORTS:
            self.mount(f"{scheme}://", Checked())

    def request(self, method: str, url: str | bytes, *args: Any, **options: Any) -> requests.Response:
        """The answer, whose body is there; a redirect is none. requests.RequestException."""
        response = super().request(
            method, url, *args, **{"timeout": WITHIN, **options, "allow_redirects": False, "stream": True}
        )
        if response.is_redirect:
            raise requests.TooManyRedirects("a provider's address is to be said as it is", response=response)
        response.raw = io.BytesIO(_read(response))
        return response


class Checked(HTTPAdapter):
    """Connects to the address that was checked; its name stays in `host` and is what TLS verifies."""

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: bool | str, cert: Any = None
    ) -> tuple[Any, Any]:
        """Where to connect to, and how; requests.ConnectionError where that may not be."""
        host_params, pool_kwargs = super().build_connection_pool_key_attributes(request, verify, cert)
        name, scheme = host_params["host"], host_params["scheme"]
        if "@" in urlsplit(str(request.url)).netloc:
            raise requests.exceptions.InvalidURL("a provider's address has no name and password", request=request)
        port = host_params["port"] or USUAL_PORTS[scheme]
        rule = of_issuers(config.load(), in_clear=scheme == "http")
        try:
            address, *_ = rule.check(name.strip("[]"), port)
        except (AddressRefused, NoAddress) as error:
            raise requests.ConnectionError(str(error), request=request) from None
        if scheme == "https":
            pool_kwargs |= {"server_hostname": name, "assert_hostname": name}
        return {**host_params, "host": address, "port": port}, pool_kwargs

    def add_headers(self, request: requests.PreparedRequest, **options: Any) -> None:
        """The name, which the connection itself no longer knows."""
        request.headers["Host"] = urlsplit(str(request.url)).netloc.rpartition("@")[2]


def _read(response: requests.Response) -> bytes:
    """The body, as long as it comes in time and is not too large."""
    body, end = b"", time.monotonic() + WITHIN
    try:
        while piece := response.raw.read1(65536, decode_content=True):
            body += piece
            if len(body) > LARGEST or time.monotonic() > end:
                raise requests.exceptions.ContentDecodingError("a provider's answer is too large, or too slow")
    except HTTPError as error:
        raise requests.ConnectionError(str(error)) from None
    finally:
        response.close()
    return body
