"""Asks a server what it is, which models it holds and what each of them can do."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import httpx
import msgspec

from apps.orchestration.dialects import DIALECTS, Dialect, FoundModel, Question, detection
from apps.orchestration.dialects.dialect import at
from apps.orchestration.models import Server
from citadel import config, hop
from citadel.addresses import AddressRefused, CheckedTransport, of_fleet
from citadel.errors import LoopDetected
from citadel.sections import Config

T = TypeVar("T")

WITHIN = 5.0
"""Seconds for all of it."""
DETAILS_WITHIN = 2.0
"""Of those, for what is said of single models."""
PAGE_WITHIN = 1.0
"""And for the health page of a kind that is known."""
TIMEOUT = httpx.Timeout(3.0, connect=2.0)
LARGEST_ANSWER = 8 * 1024 * 1024
AT_ONCE = 8
"""Questions that one server gets at the same time."""
NO_PAGE = frozenset({404, 405, 410, 501})
"""What a server answers on an address that it has not got."""
ABSENT = NO_PAGE | {301, 302, 303, 307, 308}
"""What it may answer on one that it knows nothing of."""
MOST_MODELS = 2000
"""Of one server; more are not kept."""
MOST_QUESTIONS = 200
"""About single models; the others of a server that has more keep what its list says."""


class DiscoveryFailed(Exception):
    """The server didn't tell its models; the message says what happened and where."""


class HasNoList(DiscoveryFailed):
    """The server answers, but with no list of models: it may have none, and serve what somebody has named."""


class MetItself(DiscoveryFailed):
    """The server is this very Citadel."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is and how to speak to it, as far as that is known."""

    url: str
    kind: str = ""
    api_key: str = field(default="", repr=False)
    models_path: str = ""
    """Asked for models instead of what its kind has."""
    health_path: str = ""
    """Asked by probes instead of what its kind has."""


class Found(NamedTuple):
    """What a server says of itself."""

    kind: str
    models: list[FoundModel]


class _Refused(Exception):
    """One question that was not answered well, in words for people; with the answer and its status if there was one."""

    def __init__(self, words: str, status: int = 0, answer: Any = None):
        super().__init__(words)
        self.status = status
        self.answer = answer


def place_of(server: Server) -> Place:
    """Where a server of the registry is."""
    return Place(server.url, server.kind, server.api_key, server.models_endpoint, server.health_endpoint)


def discover(place: Place, *, settle: bool = False) -> Found:
    """What the server says of itself; DiscoveryFailed when it can't be asked or says nothing that makes sense.

    To `settle` what it is, one that answers in no way that a server of models does is taken for a plain web server.
    From code that waits: in a thread of its own, since there may be an event loop in this one.
    """
    return _run(ask(place, config.load(), settle=settle))


async def ask(place: Place, settings: Config, *, settle: bool = False) -> Found:
    """The same from a running event loop, within five seconds."""
    try:
        async with asyncio.timeout(WITHIN), _connected(place, settings) as questions:
            kind = await _known_kind(questions, place) or await _kind(questions, place.models_path, settle=settle)
            try:
                return await _found(questions, kind, place.models_path)
            except DiscoveryFailed:
                other = await _kind(questions, place.models_path) if place.kind else kind
                if other in (kind, "http"):
                    raise
                return await _found(questions, other, place.models_path)
    except TimeoutError:
        raise DiscoveryFailed(f"{place.url} can't be asked: no answer within {WITHIN:g} s") from None
    except AddressRefused as refused:
        raise DiscoveryFailed(f"{place.url} can't be asked: {refused}") from None


async def _known_kind(questions: "_Questions", place: Place) -> str:
    """The kind that a server has at its place. One that has not got the health page of that kind has become another,
    if it is of one: what answers in several ways, as with a list of models, tells no difference. Where somebody has
    named pages, those of the kind need not be there.
    """
    dialect = DIALECTS[place.kind]
    is_named = place.health_path or place.models_path
    if not place.kind or is_named or dialect.health_path in ("/", dialect.models_path):
        return place.kind
    answer = await questions.try_to(Question(dialect.health_path), PAGE_WITHIN)
    if not isinstance(answer, _Refused) or answer.status not in NO_PAGE:
        return place.kind
    with suppress(DiscoveryFailed):
        found = await _kind(questions, place.models_path)
        return place.kind if found == "http" else found
    return place.kind


async def _kind(questions: "_Questions", models_path: str, *, settle: bool = False) -> str:
    """What the server is; DiscoveryFailed where that can't be told now, since it is out of order or wants a key."""
    paths = [path for path in dict.fromkeys((models_path, *detection.PATHS)) if path]
    told = dict(zip(paths, await asyncio.gather(*(questions.try_to(Question(path)) for path in paths)), strict=True))
    listing = min((models_path or detection.MODELS, detection.MODELS), key=lambda path: _emptiness(told[path]))
    models = told[detection.MODELS] = told[listing]
    kind = detection.kind_of({path: answer for path, answer in told.items() if not isinstance(answer, _Refused)})
    if kind == "http" and isinstance(models, _Refused) and models.status not in ABSENT:
        if settle and not models_path and all(map(_is_a_web_servers, told.values())):
            return kind
        raise DiscoveryFailed(str(models))
    if kind == "http" and not isinstance(models, str | _Refused):
        raise DiscoveryFailed(f"{questions.url}{listing} did not answer with a list of models")
    return kind


def _is_a_web_servers(answer: Any) -> bool:
    """Whether an answer is a page or a refusal, but not one that tells of an error as servers of models do."""
    if isinstance(answer, _Refused):
        tells = at(answer.answer, "error") is not None or at(answer.answer, "object") == "error"
        return answer.status > 0 and not tells
    return isinstance(answer, str)


def _emptiness(answer: Any) -> int:
    """Of pages that may list models the one is believed that says most: JSON, then that it is out of order."""
    if isinstance(answer, _Refused):
        return 2 if answer.status in ABSENT else 1
    return 2 if isinstance(answer, str) else 0


async def _found(questions: "_Questions", kind: str, models_path: str) -> Found:
    dialect = DIALECTS[kind]
    paths = [path for path in dict.fromkeys((models_path, dialect.models_path)) if path]
    if not paths:
        return Found(kind, [])
    try:
        payload = await questions.first(paths)
    except _Refused as refused:
        failure = HasNoList if refused.status in NO_PAGE else DiscoveryFailed
        raise failure(str(refused)) from None
    rows = _read_models(dialect, payload, f"{questions.url}{paths[0]}")
    models = {model.name: model for model in _not_through(questions.own_mark, rows)}
    return Found(kind, await _completed(questions, dialect, list(models.values())[:MOST_MODELS]))


def _not_through(own: str, models: Iterable[FoundModel]) -> list[FoundModel]:
    """The models without those to which each way leads through this Citadel, of the mark `own`, and the ways likewise:
    two that each learn a model from the other would have it for ever.
    """
    kept = []
    for model in models:
        ways = hop.ways_past(own, model.ways)
        if ways or not model.ways:
            kept.append(replace(model, ways=ways))
    return kept


def _read_models(dialect: Dialect, payload: Any, address: str) -> list[FoundModel]:
    """A page that somebody has named may have another form than the kind's own, if that has one."""
    for reader in (dialect, DIALECTS["openai"]) if dialect.models_path else (DIALECTS["openai"],):
        try:
            return reader.read_models(payload)
        except ValueError:
            continue
    raise HasNoList(f"{address} did not answer with a list of models")


async def _completed(questions: "_Questions", dialect: Dialect, models: list[FoundModel]) -> list[FoundModel]:
    """The models with what the server says of each; one of which it says nothing stays as it is."""
    asked = {model.name: dialect.ask_about(model) for model in models[:MOST_QUESTIONS]}
    different = {_key(question): question for few in asked.values() for question in few}
    answers = dict(zip(different, await questions.each(different.values(), DETAILS_WITHIN), strict=True))
    told = {
        name: {question.path: answer for question in few if (answer := answers[_key(question)])}
        for name, few in asked.items()
    }
    return [dialect.complete(model, told[model.name]) if told.get(model.name) else model for model in models]


def _key(question: Question) -> bytes:
    return msgspec.json.encode(question)


class _Questions:
    """One server, and the requests to it."""

    def __init__(self, url: str, client: httpx.AsyncClient, own_mark: str):
        self.url = url
        self.own_mark = own_mark
        self._client = client
        self._places = asyncio.Semaphore(AT_ONCE)

    async def ask(self, question: Question) -> Any:
        """The answer: JSON, or text where it is none. _Refused; MetItself."""
        address = f"{self.url}{question.path}"
        method = "GET" if question.body is None else "POST"
        try:
            async with self._places, self._client.stream(method, address, json=question.body) as response:
                answer = _read(await _whole(address, response))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Refused(f"{address} can't be asked: {error or type(error).__name__}") from None
        if response.status_code == LoopDetected.status and at(answer, "error", "code") == LoopDetected.default_code:
            raise MetItself(f"{self.url} leads back to this Citadel itself")
        if not response.is_success:
            raise _Refused(f"{address} answered {response.status_code}", response.status_code, answer)
        return answer

    async def first(self, paths: Sequence[str]) -> Any:
        """The answer of the first of these paths that has one; _Refused as the last was."""
        *others, last = paths
        for path in others:
            with suppress(_Refused):
                return await self.ask(Question(path))
        return await self.ask(Question(last))

    async def each(self, questions: Iterable[Question], within: float) -> list[Any]:
        """The answers in order, None where there is none in time."""
        answers = await asyncio.gather(*(self.try_to(question, within) for question in questions))
        return [None if isinstance(answer, _Refused) else answer for answer in answers]

    async def try_to(self, question: Question, within: float = WITHIN) -> Any:
        """The answer, or the _Refused that came instead."""
        try:
            async with asyncio.timeout(within):
                return await self.ask(question)
        except _Refused as refused:
            return refused
        except TimeoutError:
            return _Refused(f"{self.url}{question.path} did not answer in time")


async def _whole(address: str, response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > LARGEST_ANSWER:
            raise _Refused(f"{address} answered with more than {LARGEST_ANSWER} bytes")
    return bytes(body)


def _read(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode(errors="replace")


@asynccontextmanager
async def _connected(place: Place, settings: Config) -> AsyncIterator[_Questions]:
    headers = {**hop.introduction(settings.secret, "discovery"), "accept-encoding": "identity"}
    if place.api_key:
        headers["authorization"] = f"Bearer {place.api_key}"
    transport = CheckedTransport(of_fleet(settings), connections=AT_ONCE)
    async with httpx.AsyncClient(
        transport=transport, headers=headers, timeout=TIMEOUT, follow_redirects=False, trust_env=False
    ) as client:
        yield _Questions(place.url, client, hop.mark(settings.secret))


def _run(work: Coroutine[Any, Any, T]) -> T:
    with ThreadPoolExecutor(1, "discovery") as thread:
        return thread.submit(asyncio.run, work).result()
