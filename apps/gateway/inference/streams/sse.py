"""Server-sent events of a completion, parsed as little as a promise allows: nothing malformed is ever passed on.

Pure: packets in, whole valid events out, byte for byte where they are framed as everybody frames them. Format: the
WHATWG HTML standard, "Server-sent events", 9.2.6.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from apps.gateway.inference.streams.blocks import Blocks

LARGEST_EVENT = 384 * 1024
"""Bytes that may wait for the end of their event: a server that sends more is not talking to us. With what its
connection has read ahead, a stream takes less than a megabyte.
"""

DONE = b"data: [DONE]\n\n"
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding a server's bytes may raise."""
BROKEN_OFF = frozenset(("error", "abort"))
"""Why a choice ended, where its server gave up: OpenRouter, Mistral and vLLM say "error", vLLM and SGLang "abort"."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""May stand at the beginning of a stream and says nothing."""


class Malformed(Exception):
    """What came is not a stream of completion chunks; the message says what was wrong."""


class ErrorEvent(Exception):
    """The server reports an error in the stream."""

    def __init__(self, error: Any):
        super().__init__("error event")
        self.error = error


class Usage(Struct):
    """Tokens as the server counted them."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class Object(Struct):
    """An object, whatever is in it."""


Text = str | list[Object] | None
"""What is said: a text, or parts of it (Mistral)."""


class _Delta(Struct):
    content: Text = None
    tool_calls: list[Object] | Object | None = None
    """Some versions of TGI send one call instead of a list."""


class _Choice(Struct):
    index: Annotated[int, Meta(ge=0)] | None = 0
    finish_reason: str | None = None
    delta: _Delta | UnsetType | None = UNSET
    text: str | UnsetType | None = UNSET
    message: Object | None = None
    error: Any = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None


class _FullChoice(Struct):
    delta: dict[str, Any] | None = None
    text: str | None = None


class _FullChunk(Struct):
    choices: list[_FullChoice] | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_full = msgspec.json.Decoder(_FullChunk)


@dataclass(slots=True)
class Parser:
    """Reads one stream. `choices` is how many choices were asked for, `pass_usage` whether the client asked for usage,
    `empty_event` the data of an event that says nothing before the content, `chat` whether choices have deltas, else
    texts.

    `[DONE]` is noted and not passed on: it is the relay's to send, when everything else was there.
    """

    choices: int = 1
    pass_usage: bool = False
    empty_event: bytes = b""
    chat: bool = True
    has_content: bool = False
    """Whether a chunk with content, or an end, has come."""
    done: bool = False
    """Whether `[DONE]` has come."""
    broken: Malformed | ErrorEvent | None = None
    """Set when what comes can't be read any further; what was good before it has been given."""
    usage: Usage | None = None
    kept_back: bytes = b""
    """The event that told usage to a client who had not asked."""
    content_chunks: int = 0
    _seen: set[int] = field(default_factory=set)
    _finished: set[int] = field(default_factory=set)
    _blocks: Blocks = field(default_factory=Blocks)

    @property
    def finished(self) -> bool:
        """Whether every choice has told why it ended: all that have come, where `[DONE]` says that these are all (some
        servers don't know `n`), else as many as were asked for.
        """
        return self._seen == self._finished and len(self._finished) >= (1 if self.done else self.choices)

    def feed(self, packet: bytes) -> bytes:
        """Takes what came, gives what may be passed on."""
        if not self._blocks.size and packet.startswith(b"data: ") and packet.endswith(b"\n\n") and _is_text(packet):
            events = packet[6:-2].split(b"\n\ndata: ")
            ends = events[-1] == b"[DONE]"
            data = events[:-1] if ends else events
            one_line_each = packet.count(b"\n") == 2 * len(events) and b"\r" not in packet
            if one_line_each and (chunks := _decode(data)) is not None:
                kept = self._note_all(chunks, data)
                self.done = ends and self.broken is None
                if kept is not data:
                    return b"".join(map(framed, kept))
                return packet[: -len(DONE)] if ends else packet
        return self._feed_slowly(packet)

    def flush(self) -> bytes:
        """What may still be passed on at the end of the stream: a last event whose blank line is missing."""
        return self._feed_slowly(b"\n\n", at_end=True)

    def _feed_slowly(self, packet: bytes, *, at_end: bool = False) -> bytes:
        passed = []
        for block in self._blocks.feed(packet, at_end=at_end):
            if self.done or self.broken:
                break
            passed += self._read(block.removeprefix(_BYTE_ORDER_MARK))
        if self._blocks.size > LARGEST_EVENT:
            self._blocks.clear()
            if not (self.done or self.broken):
                self.broken = Malformed("an event is too large")
        return b"".join(map(framed, passed))

    def _read(self, block: bytes) -> list[bytes]:
        """Notes what an event says. Gives its data where the client gets it."""
        name, data = _event(block)
        if name == b"error":
            self.broken = ErrorEvent(json_or_none(data))
        elif block.startswith(b"{"):  # JSON in the place of an event
            self.broken = _no_chunk(block)
        elif data.strip() == b"[DONE]":
            self.done = True
        elif not data or (data == self.empty_event and not self.has_content):
            return []
        elif not _is_text(data) or (chunks := _decode([data])) is None:
            self.broken = _no_chunk(data) if name in (b"", b"message") else None
        else:
            return self._note_all(chunks, [data])
        return []

    def _note_all(self, chunks: list[_Chunk], data: list[bytes]) -> list[bytes]:
        """Notes what the chunks say. Gives the events that the client gets: the same list when it is all of them."""
        kept = [event for chunk, event in zip(chunks, data, strict=True) if self._note(chunk, event)]
        return data if len(kept) == len(data) else kept

    def _note(self, chunk: _Chunk, data: bytes) -> bool:
        """Whether the client gets this chunk."""
        if self.broken:
            return False
        if chunk.error or chunk.object == "error":
            self.broken = ErrorEvent(json_or_none(data))
            return False
        if chunk.usage is not None:
            self.usage = chunk.usage
        if not chunk.choices:
            return self._note_rest(chunk, data)
        ends = False
        for choice in chunk.choices:
            if choice.error or (choice.delta if self.chat else choice.text) is UNSET or choice.finish_reason:
                self.broken = self._fault(choice, data)
                if self.broken:
                    return False
            index = choice.index or 0
            self._seen.add(index)
            if choice.finish_reason:  # some servers send an empty one with each chunk
                self._finished.add(index)
                self.has_content = ends = True
        if (self.has_content and not ends) or _has_content(data):
            self.has_content = True
            self.content_chunks += 1
        return True

    def _note_rest(self, chunk: _Chunk, data: bytes) -> bool:
        """Whether the client gets this chunk without choices, which may tell usage, have an empty list of them, or tell
        something else that is a chunk by its id. What says nothing at all is dropped.
        """
        if chunk.usage is not None:
            if self.pass_usage:
                return True
            self.kept_back = data
            return False
        if chunk.choices is not None:
            return True
        payload = json_or_none(data)
        if not isinstance(payload, dict) or tells_error(payload) or payload.get("error") is not None:
            self.broken = ErrorEvent(payload)
            return False
        return bool(payload.get("id"))

    def _fault(self, choice: _Choice, data: bytes) -> Malformed | ErrorEvent | None:
        """What is wrong with a choice that reports an error, or has not what it should have.

        It need not have that where it ends, or is Azure's verdict on what was said before.
        """
        if choice.error or choice.finish_reason in BROKEN_OFF:
            return ErrorEvent({"error": choice.error})
        says, elsewhere = (choice.delta, choice.text) if self.chat else (choice.text, choice.delta)
        may_be_silent = choice.finish_reason or b'"content_filter_' in data
        if says is UNSET and (elsewhere or choice.message or not may_be_silent):
            return Malformed("a choice without what it should say")
        return None


def json_or_none(data: bytes) -> Any:
    """What a server sent as JSON, None where it is none that can be decoded whole."""
    try:
        return msgspec.json.decode(data)
    except UNREADABLE:
        return None


def tells_error(payload: Any) -> bool:
    """Whether an object that is no answer says what is wrong, in one of the ways that servers do."""
    return isinstance(payload, dict) and any(payload.get(name) for name in ("error", "message", "detail"))


def _no_chunk(data: bytes) -> Malformed | ErrorEvent:
    """What an event is that is no chunk."""
    payload = json_or_none(data)
    return ErrorEvent(payload) if tells_error(payload) else Malformed("an event is not a completion chunk")


def _decode(events: list[bytes]) -> list[_Chunk] | None:
    """The events as chunks, each decoded by itself: two that are no JSON may be some together. None if one isn't."""
    try:
        return [_decode_chunk(event) for event in events]
    except UNREADABLE:
        return None


def _is_text(data: bytes) -> bool:
    """Whether it is UTF-8 of a bearable length."""
    return len(data) <= LARGEST_EVENT and is_utf8(data)


def is_utf8(data: bytes) -> bool:
    """Whether it is UTF-8: the decoder does not look into texts that it skips."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_content(data: bytes) -> bool:
    """Whether a chunk says more than who speaks."""
    try:
        chunk = _full.decode(data)
    except UNREADABLE:
        return False
    return any(
        choice.text or any(value for name, value in (choice.delta or {}).items() if name != "role")
        for choice in chunk.choices or ()
    )


def _event(block: bytes) -> tuple[bytes, bytes]:
    """The name and the data of an event, each empty when it has none (a comment, say)."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return b"", block[6:]
    lines = block.split(b"\n")
    names = [line[6:].strip() for line in lines if line.startswith(b"event:")]
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return names[-1] if names else b"", b"\n".join(data)


def framed(data: bytes) -> bytes:
    """The data as an event."""
    return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
