"""A batch of inputs of which some are already known: asks for the rest and puts the answer together."""

import asyncio
import base64
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct

from apps.gateway.inference.doors import LARGE, Door, fingerprint, with_inputs
from apps.gateway.inference.http.failures import Failure, malformed
from apps.gateway.inference.streams.sse import UNREADABLE
from apps.gateway.inference.usage import BYTES_PER_TOKEN
from apps.gateway.openai.schemas import EmbeddingRequest
from citadel.errors import BackendRefused

FOUND_USAGE = {"prompt_tokens": 0, "total_tokens": 0}
"""What a batch costs whose embeddings were all there."""


class _Row(Struct):
    embedding: Raw
    index: int | None = None


class _Answer(Struct):
    data: list[_Row]
    usage: Any = None


_answer = msgspec.json.Decoder(_Answer)
_OF_NUMBERS = b"0123456789+-.eE, \t\r\n"
_OF_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/\\"
_floats = msgspec.json.Decoder(list[float])


class EmbeddingBatch:
    """One embedding request and what is known of its answer.

    An embedding is kept as the JSON that stands for it in the answer: the server's own digits, or base64.
    """

    def __init__(self, model: str, body: bytes, request: EmbeddingRequest, digests: Sequence[bytes]):
        self._request = request
        self._model = model
        self._source = body
        self._base64 = request.encoding_format == "base64"
        self._inputs = request.inputs
        self.digest = hashlib.sha256(b"".join(digests)).digest()
        """Of the whole request."""
        self.keys = [f"embed:{digest.hex()}" for digest in digests]
        """Of the cache entries, one an input."""
        self.prompt_tokens = 0
        """Of what the server was asked, as it counts, or as can be told from outside where it doesn't."""
        self._vectors: list[bytes | None] = [None] * len(self.keys)
        self._missing = list(range(len(self.keys)))

    @classmethod
    async def read(cls, team: str, model: str, door: Door, body: bytes, request: EmbeddingRequest) -> Self:
        """A batch of which nothing is known. Others may run between the parts of a large one."""
        options = await fingerprint(team, model, door, body, without="input")
        digests, done = [], 0
        for item in request.inputs:
            text = msgspec.json.encode(item)
            digests.append(hashlib.sha256(options + text).digest())
            done += len(text)
            if done > LARGE:
                await asyncio.sleep(0)
                done = 0
        return cls(model, body, request, digests)

    @property
    def complete(self) -> bool:
        """Whether nothing need be asked."""
        return not self._missing

    def found(self, vectors: Sequence[bytes | None]) -> None:
        """Takes what the cache has, an item for each key."""
        self._vectors = list(vectors)
        self._missing = [index for index, vector in enumerate(vectors) if vector is None]

    def body(self) -> bytes:
        """The request for what is missing; the client's own bytes when that is all."""
        if len(self._missing) == len(self._inputs) and self._model == self._request.model:
            return self._source
        return with_inputs(self._source, self._model, [self._inputs[index] for index in self._missing])

    def merge(self, answer: bytes) -> bytes:
        """The whole answer, given the server's for what was missing; Failure when it doesn't fit the question,
        BackendRefused when the server doesn't know `dimensions`.
        """
        try:
            partial = _answer.decode(answer)
        except UNREADABLE:
            raise malformed("no embeddings") from None
        if len(partial.data) != len(self._missing):
            raise malformed("not as many embeddings as inputs")
        self.prompt_tokens = _count(partial.usage) or len(self.body()) // BYTES_PER_TOKEN
        converted = False
        positions = [place if row.index is None else row.index for place, row in enumerate(partial.data)]
        if sorted(positions) != list(range(len(self._missing))):
            raise malformed("not an embedding for each input")
        lengths = set()
        for position, row in zip(positions, partial.data, strict=True):
            vector = bytes(row.embedding)
            if vector.startswith(b'"') != self._base64:
                vector, converted = self._convert(vector), True
            if not _is_vector(vector):
                raise _no_vector()
            lengths.add(_length(vector))
            self._vectors[self._missing[position]] = vector
        self._check_lengths(lengths)
        if len(self._missing) == len(self._inputs) and not converted:
            return answer
        return self._assemble(msgspec.json.encode(partial.usage or FOUND_USAGE))

    def answer(self) -> bytes:
        """The whole answer, all of it known before."""
        return self._assemble(msgspec.json.encode(FOUND_USAGE))

    def new(self) -> Iterator[tuple[str, bytes]]:
        """What `merge` has learned, by key."""
        for index in self._missing:
            vector = self._vectors[index]
            if vector is not None:
                yield self.keys[index], vector

    def _check_lengths(self, lengths: set[int]) -> None:
        """What is wrong with the lengths of a server's vectors is raised."""
        if len(lengths) > 1:
            raise malformed("embeddings of different lengths")
        asked = self._request.dimensions
        if asked is not None and lengths != {asked}:
            message = f"The model '{self._request.model}' gives embeddings of {max(lengths)} dimensions, not {asked}."
            raise BackendRefused(message, status=400, code="unsupported_by_model", param="dimensions")

    def _assemble(self, usage: bytes) -> bytes:
        rows = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector or b"null")
            for index, vector in enumerate(self._vectors)
        )
        model = msgspec.json.encode(self._model)
        return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (rows, model, usage)

    def _convert(self, vector: bytes) -> bytes:
        """Floats to base64 of little-endian 32-bit floats, or back: for servers that don't know the other."""
        try:
            if self._base64:
                packed = array("f", _floats.decode(vector))
                return msgspec.json.encode(base64.b64encode(packed.tobytes()).decode())
            packed = array("f")
            packed.frombytes(base64.b64decode(msgspec.json.decode(vector, type=str), validate=True))
            return msgspec.json.encode(packed.tolist())
        except (*UNREADABLE, ValueError, OverflowError):
            raise _no_vector() from None


def _length(vector: bytes) -> int:
    """How many numbers a vector has: a list's, or those of four bytes each that are a text of base64."""
    if vector.startswith(b"["):
        return vector.count(b",") + 1
    if b"\\" in vector:  # JSON may write any character as an escape
        vector = b'"%b"' % msgspec.json.decode(vector, type=str).encode()
    return len(vector[1:-1].rstrip(b"=")) * 3 // 16


def _is_vector(embedding: bytes) -> bool:
    """Whether a JSON value is a list of numbers, or a text of base64, and not an empty one.

    What is JSON and has nothing but digits, signs and commas in one pair of brackets is a list of numbers: told five
    times as fast as by decoding them.
    """
    if embedding.startswith(b"["):
        return embedding.translate(None, _OF_NUMBERS) == b"[]" and bool(embedding.strip(b"[] \t\r\n"))
    text = embedding[1:-1].rstrip(b"=")
    return embedding.startswith(b'"') and bool(text) and not text.translate(None, _OF_BASE64)


def _no_vector() -> Failure:
    return malformed("an embedding that is no vector")


def _count(usage: Any) -> int:
    """The tokens of an answer's usage, whatever stands there."""
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0
