"""What a server says of an error, and how much of it a client may read. Pure."""

import re
from typing import Any, NamedTuple

import msgspec

from apps.gateway.inference.streams.sse import json_or_none

PAST_CONTEXT = "context_length_exceeded"
"""OpenAI's code for a request that is longer than the model's context."""
LONGEST = 500
"""Characters that a client gets."""
LONGEST_READ = 10_000
"""Characters that are looked through for them."""

_FIELD = re.compile(r"Field '([^']*)': ")
"""How llama.cpp begins what is wrong with a field."""
_TOO_LONG = re.compile(
    r"exceed_context_size"  # llama.cpp's type
    r"|maximum (?:context|model) length"  # vLLM, OpenAI
    r"|exceeds the (?:available )?context (?:size|length)",  # llama.cpp, Ollama
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

_STACK = re.compile(
    r"Traceback \(most recent call last\)"
    r'|File "[^"\n]*", line \d'
    r"|goroutine \d+ \["
    r"|\bpanic: "
    r"|thread '[^'\n]*' panicked at"
    r"|#\d+ +0x[0-9a-f]"
    r"|\bat (?:async |new )?[^\s()]+ (?:\[as [^\]\n]*\] )?\([^()\n]*:\d+\)"  # at f (file:1:2)
    r"|\bat [^\s()]+\((?:[^()\s]+:\d+|Native Method|Unknown Source)\)"  # at a.b.C.f(C.java:1)
    r"|\bat (?:[^\s/]*/\S*|[\w$-]+\.[a-z]{1,4}):\d",  # at node:internal/main:1
    re.IGNORECASE,
)
"""Where a stack trace begins."""

_EXTENSION = r"\.[a-z][a-z0-9]{0,15}(?![\w-])"
_PORT = r":\d{1,5}(?!\w|\.\w|::|:\w{1,4}:)"  # not the first groups of an address
_GROUPS = r"[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6}"
_IPV6 = rf"(?:[0-9a-f]{{1,4}}:){{7}}[0-9a-f]{{1,4}}|(?:{_GROUPS})?::{_GROUPS}|{_GROUPS}::"
_INTERNALS = re.compile(
    "|".join(
        (
            r"\b[a-z][a-z0-9+.-]{0,30}://\S+",
            r"\b(?:file|unix):\S+",
            r"\bbearer\s+\S+",
            r"(?<![\w-])(?:sk-[\w-]{6,}|ctd_\w+|hf_\w{6,})",
            rf"\[(?:{_IPV6})(?:%[\w.-]{{1,16}})?\](?::\d{{1,5}})?",
            rf"(?<![\w.])(?:{_IPV6})(?:%[\w.-]{{1,16}})?(?![\w:])",
            r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b",
            r"\blocalhost(?::\d+)?\b",
            r"(?<![\w.-])[a-z0-9_][\w-]*(?:\.[\w-]+)*\.(?:internal|local|localdomain|corp|lan|intranet)\b(?::\d{1,5})?",
            r"(?<![\w.-])[\w-]+\.(?:c|cc|cpp|cu|go|h|hpp|java|js|py|rs|ts):\d+|(?<![\w.-])[\w-]+\.py\b",
            rf"(?<![\w.-])[a-z0-9][\w-]*(?:\.[a-z0-9][\w-]*)+(?=:\d\d){_PORT}",
            rf"(?<![\w.-])[a-z][a-z0-9-]*(?=:\d{{4}}){_PORT}",
            rf"(?<![\w.-])[a-z](?=[a-z0-9]*[0-9-])[a-z0-9-]*(?=:\d\d){_PORT}",
            r"(?<![\w/.~])(?:~|\.{1,2})?(?:/[\w.@+-]+){2,}/?",
            rf"(?<![\w/.~])(?:~|\.{{1,2}})?/[\w@+-][\w.@+-]*{_EXTENSION}",
            rf"(?<![\w.@+/-])(?:[\w.@+-]+/)+[\w@+-][\w.@+-]*{_EXTENSION}",
            r"\b[a-z]:\\\S+|\\\\[\w.-]+\\\S+",
        )
    ),
    re.IGNORECASE,
)
"""Addresses, keys, hosts, places in source code, paths."""


class Words(NamedTuple):
    """A server's error as it is told, in its own words, with OpenAI's code and the field where they are known."""

    message: str = ""
    code: str | None = None
    param: str | None = None


def read_error(body: bytes) -> Words:
    """The words of an error body, in OpenAI's shape or another's."""
    payload = json_or_none(body)
    if not isinstance(payload, dict):
        return Words()
    error = payload.get("error") or payload
    if isinstance(error, str):
        return Words(error, _code("", error))
    if not isinstance(error, dict):  # but that there is one, which is then told beside it
        error = payload
    message = error.get("message") or error.get("detail") or ""
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    field = _FIELD.match(message)
    code = _identifier(error.get("code")) or _code(str(error.get("type")), message)
    return Words(message, code, _identifier(error.get("param") or (field and field[1])))


def scrub(message: str) -> str:
    """A server's words without its insides: no addresses, keys, paths, stack traces; 500 characters at most."""
    text = _STACK.split(message[:LONGEST_READ], maxsplit=1)[0].strip()
    return _INTERNALS.sub("…", text)[:LONGEST]


def _code(kind: str, message: str) -> str | None:
    """OpenAI's code, where it is known and the server has none."""
    return PAST_CONTEXT if _TOO_LONG.search(kind) or _TOO_LONG.search(message[:LONGEST_READ]) else None


def _identifier(value: Any) -> str | None:
    """A code or the name of a field; None for what is neither, or tells too much."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        return None
    return value if scrub(value) == value else None
