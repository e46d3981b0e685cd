"""Which request meets which behaviour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .backend.routes import is_inference
from .request import Request
from .troubles import Trouble, TroubleSpecError, parse

INLINE = re.compile(rb"\[\[behave:([^\]]{1,500})\]\]")
RULES = 1_000

Positive = Annotated[int, Meta(ge=1)]


class Rule(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A behaviour and the conditions, all of which must hold. Without any it is the default for all inference.

    ``next``: only so many requests, then the rule is gone. ``every``: only each so-many-th. ``path``: this path (a
    ``*`` at the end stands for anything) instead of the inference paths. ``header``: ``name`` or ``name: value``.
    ``body``: a text that the body holds.
    """

    do: str | dict[str, Any]
    next: Positive | None = None
    every: Positive | None = None
    path: str | None = None
    header: str | None = None
    body: str | None = None

    def is_default(self) -> bool:
        """Whether the rule has no condition."""
        return (self.next, self.every, self.path, self.header, self.body) == (None,) * 5

    def suits(self, request: Request) -> bool:
        """Whether the conditions on the request itself hold."""
        if not (_path_suits(self.path, request.path) if self.path else is_inference(request)):
            return False
        if self.header is not None:
            name, colon, value = self.header.partition(":")
            found = request.headers.get(name.strip().lower())
            if found is None or (colon and found != value.strip()):
                return False
        return self.body is None or self.body.encode() in request.body


def _path_suits(pattern: str, path: str) -> bool:
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


class _Active:
    """A rule with its counters."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.troubles = parse(rule.do)
        self.left = rule.next
        self.met = 0

    def takes(self) -> bool:
        """Count one more that suits; whether the behaviour applies to it."""
        self.met += 1
        if self.rule.every and self.met % self.rule.every:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Rules:
    """The behaviours in force: a newer rule goes before an older one, the default comes last.

    What the request itself says, in the header ``x-fleet`` or as ``[[behave:NAME arg]]`` in its body, goes before all.
    """

    def __init__(self) -> None:
        self._requests: list[_Active] = []
        self._connections: list[_Active] = []
        self._default: tuple[Trouble, ...] = ()
        self.listener: Trouble | None = None

    def add(self, rule: Rule) -> None:
        """Put a rule in force; raises TroubleSpecError when it can't be."""
        active = _Active(rule)
        scopes = {trouble.scope for trouble in active.troubles}
        if "listener" in scopes and not (rule.is_default() and len(active.troubles) == 1):
            raise TroubleSpecError("refuse and silent_host are for the whole port: give them alone, without conditions")
        if rule.is_default():
            self._set_default(active.troubles)
        elif scopes == {"connection"}:
            if rule.path or rule.header or rule.body:
                raise TroubleSpecError("deaf happens before a request is read: only next and every can select it")
            self._connections.append(active)
        elif "connection" in scopes:
            raise TroubleSpecError("deaf goes with nothing else in one rule")
        else:
            self._requests.append(active)
        del self._requests[:-RULES], self._connections[:-RULES]

    def _set_default(self, troubles: tuple[Trouble, ...]) -> None:
        self.listener = next((trouble for trouble in troubles if trouble.scope == "listener"), None)
        self._default = tuple(trouble for trouble in troubles if trouble.scope != "listener")

    def clear(self) -> None:
        """Behave."""
        self._requests, self._connections, self._default, self.listener = [], [], (), None

    def in_force(self) -> list[dict[str, Any]]:
        """All rules as JSON, with what is left of them."""
        default = {"do": {t.name: msgspec.to_builtins(t) for t in (*self._default, self.listener) if t is not None}}
        actives = [*self._connections, *self._requests]
        return [default, *({**msgspec.to_builtins(active.rule), "left": active.left} for active in actives)]

    def for_request(self, request: Request) -> Sequence[Trouble]:
        """The troubles that this request meets; raises TroubleSpecError for a bad one that it asks for itself."""
        asked = self._asked_by(request)
        if asked:
            return asked
        if self._requests:
            chosen = self._first(self._requests, request)
            if chosen is not None:
                return chosen
        return self._default if self._default and is_inference(request) else ()

    def _asked_by(self, request: Request) -> tuple[Trouble, ...]:
        header = request.headers.get("x-fleet")
        if header:
            return _parsed(header)
        if b"[[behave:" in request.body:
            return _parsed(";".join(found.decode(errors="replace") for found in INLINE.findall(request.body)))
        return ()

    def _first(self, actives: list[_Active], request: Request | None) -> tuple[Trouble, ...] | None:
        for active in reversed(actives):
            if (request is None or active.rule.suits(request)) and active.takes():
                if active.left == 0:
                    actives.remove(active)
                return active.troubles
        return None

    def for_connection(self) -> Sequence[Trouble]:
        """The troubles that a new connection meets."""
        chosen = self._first(self._connections, None) if self._connections else None
        return chosen or tuple(trouble for trouble in self._default if trouble.scope == "connection")


@lru_cache(maxsize=1024)
def _parsed(spec: str) -> tuple[Trouble, ...]:
    troubles = parse(spec)
    if any(trouble.scope != "request" for trouble in troubles):
        raise TroubleSpecError("a request can't ask for refuse, silent_host or deaf: they come before it")
    return troubles
