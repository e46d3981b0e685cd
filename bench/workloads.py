"""What is sent, and what a right answer is.

Each body is cut where its number goes, so that bodies can all be different (the number counts up) or all equal.
"""

from dataclasses import dataclass
from enum import Enum

from bench import answers
from bench.signing import Form

STREAM_CHUNKS = 100
PACED_INTERVAL_MS = 20


class Kind(Enum):
    """How an answer is looked at."""

    CHAT = "chat"
    STREAM = "stream"
    EMBEDDING = "embedding"


@dataclass(frozen=True)
class Workload:
    """One kind of request. ``before`` and ``after`` are the body around its number."""

    name: str
    kind: Kind
    path: str
    before: bytes
    after: bytes
    distinct: bool = True
    chunks: int = 0
    form: Form | None = None
    """How every other request is signed. The ones between bring the key, as all do where this is None: what signing
    costs is the difference, and the machine's pace changes by the second.
    """

    def check(self, number: bytes, body: bytes) -> int:
        """Return what a right answer is worth (events of a stream, else 1), or 0 for a wrong one."""
        if self.kind is Kind.CHAT:
            return 1 if number in body and b'"finish_reason":"stop"' in body else 0
        if self.kind is Kind.EMBEDDING:
            return 1 if b'"embedding":[' in body and body.count(b",") >= answers.DIMENSIONS - 1 else 0
        events = self.chunks + 2  # the role before the content, the finish reason after it
        is_whole = (
            body.endswith(b"data: [DONE]\n\n") and body.count(b"data: {") == events and body.count(number) == events
        )
        return events if is_whole else 0


_QUESTION = b'"messages":[{"role":"system","content":"Answer in one sentence."},{"role":"user","content":"Question #'
_QUESTION_END = b': what does a portal in front of many servers do with each question that comes in?"}]'


def _chat(
    name: str,
    options: bytes = b"",
    *,
    distinct: bool = True,
    model: str = answers.CHAT_MODEL,
    form: Form | None = None,
) -> Workload:
    before = b'{"model":"' + model.encode() + b'",' + options + _QUESTION
    return Workload(name, Kind.CHAT, "/v1/chat/completions", before, _QUESTION_END + b"}", distinct, form=form)


def _stream(name: str, interval_ms: int) -> Workload:
    options = f',"stream":true,"bench_chunks":{STREAM_CHUNKS},"bench_interval_ms":{interval_ms}}}'
    before = b'{"model":"' + answers.CHAT_MODEL.encode() + b'",' + _QUESTION
    after = _QUESTION_END + options.encode()
    return Workload(name, Kind.STREAM, "/v1/chat/completions", before, after, chunks=STREAM_CHUNKS)


def _embedding(name: str, *, distinct: bool) -> Workload:
    before = b'{"model":"' + answers.EMBEDDING_MODEL.encode() + b'","input":"Passage #'
    after = b' tells how a question finds the one machine that can answer it."}'
    return Workload(name, Kind.EMBEDDING, "/v1/embeddings", before, after, distinct)


WORKLOADS = {
    workload.name: workload
    for workload in (
        _chat("chat"),
        _chat("chat-placed", model=answers.PLACED_MODEL),
        _chat("chat-signed", form=Form.SIMPLE),
        _chat("chat-signed-message", form=Form.MESSAGE),
        _chat("chat-cacheable", b'"temperature":0,'),
        _chat("chat-cached", b'"temperature":0,', distinct=False),
        _stream("streams", 0),
        _stream("streams-paced", PACED_INTERVAL_MS),
        _embedding("embeddings", distinct=True),
        _embedding("embeddings-cached", distinct=False),
    )
}
