"""Middleware: what browsers may do with the console's pages (Content Security Policy level 3)."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from citadel import config

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # the picture that an authenticator app reads
    "font-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
FEATURES = "camera=(), geolocation=(), microphone=(), payment=(), usb=(), publickey-credentials-get=(self)"

Answering = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


@sync_and_async_middleware
def security_headers(get_response: Any) -> Answering:
    """Adds them to each answer of Django's own."""
    headers = {
        "Content-Security-Policy": policy(provider.issuer for provider in config.load().console.providers),
        "Permissions-Policy": FEATURES,
    }

    def add(response: HttpResponseBase) -> HttpResponseBase:
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        if response.headers.get("Content-Type", "").startswith("text/html"):  # secrets are shown once
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    async def asynchronous(request: HttpRequest) -> HttpResponseBase:
        return add(await get_response(request))

    def synchronous(request: HttpRequest) -> HttpResponseBase:
        return add(get_response(request))

    return asynchronous if iscoroutinefunction(get_response) else synchronous


def policy(issuers: Iterable[str]) -> str:
    """The header. Forms may lead to providers too: browsers hold where an answer to one redirects to it as well."""
    hosts = {f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, issuers)}
    directives = {**POLICY, "form-action": " ".join(["'self'", *sorted(hosts)])}
    return "; ".join(f"{name} {of}" for name, of in directives.items())
