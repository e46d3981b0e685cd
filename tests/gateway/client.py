"""A client for tests of behaviour: it asks, and keeps the whole answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


def chat(model: str, text: str = "Hello", **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def streamed(model: str, text: str = "Hello", **more: Any) -> dict[str, Any]:
    """The body of one that wants a stream."""
    return chat(model, text, stream=True, **more)


@dataclass(frozen=True)
class Reply:
    """An answer read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error, or nothing."""
        return str(self.json()["error"]["code"]) if self.status >= 400 else ""

    @property
    def cache(self) -> str:
        return self.headers["x-citadel-cache"]

    @property
    def identity(self) -> str:
        return self.headers["x-request-id"]

    @property
    def events(self) -> list[str]:
        """The data of a stream's events."""
        blocks = self.body.decode().split("\n\n")
        return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """A stream's events, `[DONE]` apart."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def texts(self) -> dict[int, str]:
        """What the model says in each choice, whole or in a stream."""
        chunks = self.chunks if self.headers["content-type"].startswith("text/event-stream") else [self.json()]
        texts: dict[int, str] = {}
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            said = choice.get("delta") or choice.get("message") or {}
            texts[choice["index"]] = texts.get(choice["index"], "") + (said.get("content") or "")
        return texts


@dataclass(frozen=True)
class Client:
    """Asks with a key without limits unless told another."""

    session: aiohttp.ClientSession

    async def post(
        self, body: Mapping[str, Any] | bytes, path: str = CHAT, *, key: str | None = None, **headers: str
    ) -> Reply:
        """The answer to a POST; `headers` have underscores for hyphens."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", path, data=data, key=key, **headers)

    async def get(self, path: str, *, key: str | None = None, **headers: str) -> Reply:
        """The answer to a GET."""
        return await self.ask("GET", path, key=key, **headers)

    async def ask(
        self, method: str, path: str, *, data: bytes | None = None, key: str | None = None, **headers: str
    ) -> Reply:
        """The answer to any request."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            sent.setdefault("content-type", "application/json")
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        async with self.session.request(method, path, data=data, headers=sent) as answer:
            return Reply(answer.status, answer.headers, await answer.read())
