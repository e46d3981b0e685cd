"""Trouble before a request can be read: nobody listens, nobody accepts, nobody reads."""

from __future__ import annotations

from typing import ClassVar, Literal

from .trouble import Trouble, trouble

Existing = Literal["keep", "close", "freeze"]


@trouble("refuse")
class Refuse(Trouble, frozen=True):
    """Connections are refused at once; the port stays ours. Those that are open are closed (or kept, or frozen)."""

    existing: Existing = "close"
    scope: ClassVar[str] = "listener"


@trouble("silent_host")
class SilentHost(Trouble, frozen=True):
    """The queue of the listening socket is full: a new connection's SYN is never answered. Open ones freeze."""

    existing: Existing = "freeze"
    scope: ClassVar[str] = "listener"


@trouble("deaf")
class Deaf(Trouble, frozen=True):
    """Accepts the connection and never reads a byte of it."""

    scope: ClassVar[str] = "connection"
