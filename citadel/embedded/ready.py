"""Does it answer yet? One question each to PostgreSQL, Redis, a web server, and a process that leaves a sign."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import psycopg

from citadel import presence
from citadel.embedded.home import Home
from citadel.redis import RedisError, RedisRefused, ask_once

ONE_QUESTION_SECONDS = 2


async def postgres(url: str) -> str | None:
    """None when the database at URL answers a query, else why not."""
    try:
        async with await psycopg.AsyncConnection.connect(url, connect_timeout=ONE_QUESTION_SECONDS) as connection:
            await connection.execute("SELECT 1")
    except psycopg.Error as error:
        return str(error).strip()
    return None


async def redis_server(url: str) -> str | None:
    """None when the Redis at URL answers and has loaded its data, else why not; asked as the web workers ask it."""
    try:
        await ask_once(url, ONE_QUESTION_SECONDS)
    except (OSError, RedisError) as error:
        return str(error) or "no answer"
    return None


async def redis_refuses(url: str) -> bool:
    """Whether the Redis at URL answers and does not let us in, which no waiting mends."""
    try:
        await ask_once(url, ONE_QUESTION_SECONDS)
    except RedisRefused as error:
        return not str(error).startswith("LOADING")
    except (OSError, RedisError):
        pass
    return False


async def http(url: str) -> str | None:
    """None when a GET of URL (http, no query) is answered with 200, else why not."""
    try:
        async with asyncio.timeout(ONE_QUESTION_SECONDS):
            status = await _status(url)
    except (OSError, ValueError) as error:
        return f"{url}: {error or 'no answer'}"
    return None if status == 200 else f"{url}: status {status}"


def by_sign(
    home: Home, name: str, command: Sequence[str]
) -> tuple[Callable[[], Sequence[str]], Callable[[], Awaitable[str | None]]]:
    """What a `Child` needs whose process says itself that it is ready: its COMMAND and the question, of this start."""
    sign = presence.sign(home.path, name)

    def begin() -> Sequence[str]:
        sign.unlink(missing_ok=True)
        return command

    async def has_said_so() -> str | None:
        return None if sign.exists() else "it has not said that it is ready"

    return begin, has_said_so


async def every_model(url: str, key: str | None) -> str | None:
    """None when the Citadel at URL can serve every registered model, else of which it tells the holder of KEY."""
    try:
        status, told = await asyncio.to_thread(_ready_page, url, key)
    except (OSError, HTTPException, ValueError) as error:
        return f"{url}: {error or 'no answer'}"
    if status == 200:
        return None
    return f"no server answers for {', '.join(told.get('models_without_server', [])) or 'some'}"


def _ready_page(url: str, key: str | None) -> tuple[int, dict[str, Any]]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=ONE_QUESTION_SECONDS)
    try:
        connection.request("GET", "/health/ready", headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


async def _status(url: str) -> int:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        line = await reader.readline()
    finally:
        writer.close()
    if not line.startswith(b"HTTP/1.") or len(line.split()) < 2:
        raise ValueError("the answer is not HTTP")
    return int(line.split()[1])
