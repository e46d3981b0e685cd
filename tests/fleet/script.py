"""From an answer to the steps that put it on the wire. Pure: no socket and no clock."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus
from itertools import pairwise

from .answer import Answer, Cue, Cut, Event, Part, Place, Point, Send, Step, Wait

REASONS = {status.value: status.phrase for status in HTTPStatus}


def script(answer: Answer, http_version: str, keep_alive: bool, head_only: bool = False) -> Iterator[Step]:
    """The steps of ``answer``; the last one is a ``Cut`` that is not early when the connection can't be kept."""
    framing = _framing(answer, http_version)
    keep_alive = keep_alive and framing != "close" and not answer.wire.length_off
    body: Iterable[Step] = () if head_only else _body(answer, framing)
    steps: Iterator[Step] = _joined(
        _head_and_body(answer, head(answer, framing, keep_alive), body), answer.wire.together
    )
    if answer.wire.split_bytes or answer.wire.split_characters:
        steps = _split(steps, answer)
    yield from steps
    if not keep_alive:
        yield Cut("fin", early=False)


def whole(answer: Answer, keep_alive: bool, head_only: bool = False) -> bytes:
    """The bytes of a plain answer that no trouble has touched."""
    return head(answer, "length", keep_alive) + (b"" if head_only else answer.body)


def is_plain(answer: Answer) -> bool:
    """Whether the answer can go out at once, in one piece."""
    return answer.events is None and not answer.cues and not answer.pace and answer.wire == _UNTOUCHED


_UNTOUCHED = Answer().wire


def head(answer: Answer, framing: str, keep_alive: bool) -> bytes:
    """Status line and headers."""
    lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if framing == "length":
        lines.append(f"content-length: {max(0, _length(answer) + answer.wire.length_off)}")
    elif framing == "chunked":
        lines.append("transfer-encoding: chunked")
    if not keep_alive:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _framing(answer: Answer, http_version: str) -> str:
    if answer.wire.framing != "auto":
        return answer.wire.framing
    if answer.events is None:
        return "length"
    return "chunked" if http_version == "1.1" else "close"


def _length(answer: Answer) -> int:
    """The length in bytes of what will be sent; a stream that must say it is made whole first."""
    if answer.events is not None:
        answer.events = list(answer.events)
        return sum(len(data) for data, _ in _encoded(answer))
    return sum(len(data) for data, _ in _encoded(answer)) if answer.wire.gzip else len(answer.body)


def _head_and_body(answer: Answer, head_bytes: bytes, body: Iterable[Step]) -> Iterator[Step]:
    yield from _steps_at(answer.cues, Place.REQUEST)
    yield from _with_offsets(Send(head_bytes), _offsets(answer.cues, Place.HEAD, 0, len(head_bytes)))
    yield from _steps_at(answer.cues, Place.HEADERS)
    yield from body


def _body(answer: Answer, framing: str) -> Iterator[Step]:
    """Body pieces in their framing, with the cues that lie in them."""
    sent = chunks = 0
    for index, (data, is_content) in enumerate(_encoded(answer)):
        if answer.pace and index and index % answer.wire.together == 0:
            yield Wait(answer.pace)
        if is_content and chunks == 0:
            yield from _steps_at(answer.cues, Place.CHUNK, 0)
        framed = _frame(data, answer, index) if framing == "chunked" else data
        offsets = _offsets(answer.cues, Place.BYTE, sent, len(framed))
        if is_content:
            offsets += _chunk_offsets(answer.cues, chunks, len(framed))
        yield from _with_offsets(Send(framed, chunks=int(is_content), events=1), sorted(offsets, key=lambda o: o[0]))
        sent += len(framed)
        if is_content:
            chunks += 1
            yield from _steps_at(answer.cues, Place.CHUNK, chunks)
    yield from _steps_at(answer.cues, Place.END)
    if framing == "chunked":
        yield Send(b"0\r\n\r\n")


def _encoded(answer: Answer) -> Iterator[tuple[bytes, bool]]:
    """Body pieces (bytes, whether it is a content chunk), compressed if asked for."""
    pieces = _pieces(answer)
    if not answer.wire.gzip:
        yield from pieces
        return
    deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)  # gzip's header and checksum, RFC 1952
    for data, is_content in pieces:
        yield deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH), is_content
    yield deflate.flush(), False


def _pieces(answer: Answer) -> Iterator[tuple[bytes, bool]]:
    if answer.events is None:
        if answer.body:
            yield answer.body, True
        return
    if answer.lines.start:
        yield answer.lines.start, False
    for event in answer.events:
        yield answer.lines.encode(event), event.part is Part.CONTENT


def _frame(data: bytes, answer: Answer, index: int) -> bytes:
    """``data`` as HTTP chunks, RFC 9112 section 7.1."""
    if not data:
        return b""
    if index == answer.wire.bad_frame_at:
        return b"zz\r\n%b\r\n" % data
    size = answer.wire.frame_bytes
    if not size:
        return b"%x\r\n%b\r\n" % (len(data), data)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def _steps_at(cues: list[Cue], place: Place, number: float = 0) -> list[Wait | Cut]:
    return [cue.step for cue in cues if cue.at == Point(place, number)]


def _offsets(cues: list[Cue], place: Place, start: int, length: int) -> list[tuple[int, Wait | Cut]]:
    """Cues that lie within the ``length`` bytes after ``start``, as offsets into them."""
    return [
        (int(cue.at.number) - start, cue.step)
        for cue in cues
        if cue.at.place is place and start <= cue.at.number < start + length
    ]


def _chunk_offsets(cues: list[Cue], chunks: int, length: int) -> list[tuple[int, Wait | Cut]]:
    """Cues inside of the content chunk that follows ``chunks`` whole ones, as byte offsets."""
    inside = [cue for cue in cues if cue.at.place is Place.CHUNK and chunks < cue.at.number < chunks + 1]
    return [(math.ceil((cue.at.number - chunks) * length), cue.step) for cue in inside]


def _with_offsets(send: Send, offsets: list[tuple[int, Wait | Cut]]) -> Iterator[Step]:
    """``send`` in parts, with a step after each offset."""
    if not offsets:
        yield send
        return
    done = 0
    for offset, step in offsets:
        if offset > done:
            yield Send(send.data[done:offset])
        done = offset
        yield step
    if done < len(send.data):
        yield replace(send, data=send.data[done:])


def _joined(steps: Iterator[Step], events: int) -> Iterator[Step]:
    """Put ``events`` events into one packet; a wait or a cut sends what there is before it."""
    if events <= 1:
        yield from steps
        return
    held: list[Send] = []
    for step in steps:
        if isinstance(step, Send) and step.events:
            held.append(step)
            if len(held) == events:
                yield _one(held)
                held = []
            continue
        if held:
            yield _one(held)
            held = []
        yield step
    if held:
        yield _one(held)


def _one(sends: list[Send]) -> Send:
    return Send(b"".join(s.data for s in sends), sum(s.chunks for s in sends), sum(s.events for s in sends))


def _split(steps: Iterator[Step], answer: Answer) -> Iterator[Step]:
    """Cut each body packet into smaller ones, with a pause between them."""
    for step in steps:
        if not isinstance(step, Send) or not step.events:
            yield step
            continue
        parts = _packets(step.data, answer.wire.split_bytes, answer.wire.split_characters)
        for part in parts[:-1]:
            yield Send(part)
            yield Wait(answer.wire.gap)
        yield replace(step, data=parts[-1])
        yield Wait(answer.wire.gap)


def _packets(data: bytes, size: int, inside_characters: bool) -> list[bytes]:
    cuts = set(range(size, len(data), size)) if size else set()
    if inside_characters:
        # Behind each first byte of a character of several bytes: 0b11xxxxxx, RFC 3629.
        cuts |= {position + 1 for position, byte in enumerate(data) if byte >= 0xC0}
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def without(events: Iterable[Event], *parts: Part) -> Iterator[Event]:
    """The events of a stream but those of the given parts."""
    return (event for event in events if event.part not in parts)
