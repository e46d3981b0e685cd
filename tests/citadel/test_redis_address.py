"""The address of a Redis: what it may say, where it leads, and that its mistakes are told without its password."""

import asyncio
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest

from citadel.config import read
from citadel.embedded import ready
from citadel.embedded.redis import program
from citadel.redis import Redis, RedisRefused, ask_once
from citadel.redis_address import Address
from citadel.sections import ConfigError
from tests.embedded.conftest import eventually

TLS = Path(__file__).parents[1] / "gateway/inference/tls"


@pytest.mark.parametrize(
    ("url", "greeting"),
    [
        ("redis://host", []),
        ("redis://host/3", [("SELECT", 3)]),
        ("redis://host:1/3?db=4", [("SELECT", 4)]),
        ("redis://:p%2Fa%40s%3As@host", [("AUTH", "p/a@s:s")]),
        ("redis://me:pass@host/0", [("AUTH", "me", "pass")]),
        ("redis://me@host", [("AUTH", "me", "")]),
        ("unix:///run/a%20b.sock?db=2&username=me&password=a%2Bb", [("AUTH", "me", "a+b"), ("SELECT", 2)]),
        ("unix://me:pass@/run/redis.sock", [("AUTH", "me", "pass")]),
    ],
)
def test_who_asks_and_for_which_database(url: str, greeting: list[tuple[object, ...]]) -> None:
    assert Address(url).greeting() == [*greeting, ("PING",)]


def test_where_it_leads() -> None:
    assert (Address("redis://[::1]:7/2").host, Address("redis://[::1]:7/2").port) == ("::1", 7)
    assert (Address("redis://host").host, Address("redis://host").port) == ("host", 6379)
    assert Address("unix:///run/a%20b.sock").path == "/run/a b.sock"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "must begin with redis://"),
        ("hidden", "must begin with redis://"),
        ("http://hidden@host", "must begin with redis://"),
        ("redis://:hid/den@host:6379/0", "%2F"),
        ("redis://:hid?den@host:6379/0", "%3F"),
        ("redis://:hid#den@host:6379/0", "%23"),
        ("redis://:1#den@host:6379/0", "%23"),
        ("redis://:1/den@host:6379/0", "%2F"),
        ("redis://host:70000", "port"),
        ("redis://[hidden/0", "host"),
        ("redis://host/den", "number of a database"),
        ("redis://host/0/1", "number of a database"),
        ("redis://host?db=-1", "number of a database"),
        ("redis://host?hidden=1", "other than db, username, password"),
        ("redis://host?ssl_cert_reqs=none", "belong to rediss://"),
        ("rediss://host?ssl_cert_reqs=optional", "required or none"),
        ("rediss://host?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix://", "absolute path"),
    ],
)
def test_a_mistake_is_told_without_a_secret(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"CITADEL_HOME": str(tmp_path), "REDIS_CACHE_URL": url})
    message = str(caught.value)
    assert message.startswith("environment REDIS_CACHE_URL: redis_cache_url: ")
    assert said in message
    assert "hid" not in message
    assert "den" not in message


async def test_tls_is_as_strict_as_the_address_says(store: str, tmp_path: Path) -> None:
    async with encrypted(store) as port:
        for host, query, trouble in (
            ("localhost", "", "CERTIFICATE_VERIFY_FAILED"),
            ("localhost", f"?ssl_ca_certs={TLS / 'certificate.pem'}", None),
            ("localhost", f"?ssl_ca_certs={TLS / 'certificate.pem'}&ssl_cert_reqs=required", None),
            ("localhost", "?ssl_cert_reqs=none", None),
            ("127.0.0.2", "?ssl_cert_reqs=none", None),
        ):
            url = f"rediss://{host}:{port}/0{query}"
            told = await ready.redis_server(url)
            assert (trouble in told) if trouble and told else told == trouble, (url, told)
            redis = Redis(url, timeout=2, connect_timeout=2, name="test")
            await redis.start()
            assert redis.available == (trouble is None), url
            await redis.stop()


async def test_a_start_asks_what_the_workers_ask(store: str) -> None:
    assert await ready.redis_server(f"unix://{store}") is None
    assert "password" in str(await ready.redis_server(f"unix://:wrong@{store}")).lower()
    assert "out of range" in str(await ready.redis_server(f"unix://{store}?db=99"))
    with pytest.raises(RedisRefused):
        await ask_once(f"unix://{store}?db=99", 2)
    assert await ready.redis_server(f"unix://{store}.gone")


@pytest.fixture
def store() -> Iterator[str]:
    """The path of a real Redis; short, as sockets must be."""
    with tempfile.TemporaryDirectory(prefix="citadel-test-", dir="/tmp") as folder:
        path = f"{folder}/s"
        command = [program(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            eventually(lambda: listens(path))
            yield path
            process.terminate()


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(path) == 0


@asynccontextmanager
async def encrypted(path: str) -> AsyncIterator[int]:
    """The port of the loopback on which that Redis is reached through TLS."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, questions), pump(answers, writer), return_exceptions=True)

    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    server = await asyncio.start_server(relay, "0.0.0.0", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
