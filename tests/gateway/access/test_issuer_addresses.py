"""Where issuers' keys are asked for: nowhere that is not allowed, whoever says that they are there."""

import re
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog.testing

from apps.gateway.access.tokens.key_sets import KeySet
from citadel import addresses
from citadel.config import load
from citadel.errors import Unavailable
from citadel.redis import Redis
from citadel.sections import IssuerSection
from tests.forbidden_addresses import EVERYTHING, HOSTS, NEVER, REFUSAL, URLS, Trap, at_port, trap
from tests.gateway.access.issuer import Issuer
from tests.instance import Instance
from tests.redis_database import redis_database


@pytest.fixture
async def redis(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, 14) as state:
        yield state


@pytest.fixture
def met() -> Iterator[Trap]:
    with trap() as listening:
        yield listening
        assert not listening.was_met()


async def complaint(redis: Redis, url: str | None, *networks: str, issuer: str = "https://i.example") -> str:
    """What the log says when an issuer's keys can't be had there, where it says itself if None; nobody gets in."""
    section = IssuerSection(issuer=issuer, audience="a", team="t", role="developer", jwks_url=url)
    config = load()
    security = config.security.model_copy(update={"issuer_networks": networks})
    await redis.call("FLUSHDB")  # where it stands that somebody has just asked
    keys = KeySet(section, config.model_copy(update={"security": security}), redis)
    with structlog.testing.capture_logs() as lines, pytest.raises(Unavailable, match="can't be had"):
        await keys.find("rsa")
    [line] = [one for one in lines if one["event"] == "issuer_keys_unavailable"]
    return f"{line['reason']}: {line['error']}"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_only_addresses_that_may_be_are_asked(redis: Redis, met: Trap, scheme: str) -> None:
    for host in HOSTS:
        told = await complaint(redis, f"{scheme}://{host}:{met.port}/keys", "public")
        assert re.search(REFUSAL, told), host
        assert not met.was_met(), host


async def test_whatever_the_setting_says_some_are_never_asked(redis: Redis, met: Trap) -> None:
    for host in NEVER:
        told = await complaint(redis, f"https://{host}:{met.port}/keys", *EVERYTHING)
        assert re.search(REFUSAL, told), host


async def test_what_is_no_address_of_a_key_set_is_none(redis: Redis, met: Trap) -> None:
    for url in filter(None, URLS):  # without one, discovery is asked
        told = await complaint(redis, at_port(url, met.port), *EVERYTHING)
        assert "no address of a key set" in told or "InvalidURL" in told, url
        assert not met.was_met(), url


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:a9fe:a9fe]", "metadata.google.internal", "me@127.0.0.1"])
async def test_an_issuer_names_no_other_place_than_it_may_itself(redis: Redis, met: Trap, host: str) -> None:
    with Issuer().serving() as issuer:
        issuer.keys_url = f"http://{host}:{met.port}/keys"
        told = await complaint(redis, None, "loopback", issuer=issuer.url)
    assert "may not be called" in told or "no address of a key set" in told


async def test_an_issuer_sends_nobody_elsewhere(redis: Redis, met: Trap) -> None:
    with Issuer().serving() as issuer:
        issuer.keys_url = f"http://127.0.0.1:{met.port}/keys"
        assert "302" in await complaint(redis, f"{issuer.url}/moved", "loopback", issuer=issuer.url)


async def test_a_name_that_leads_elsewhere_a_moment_later_is_looked_up_once(
    redis: Redis, met: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, *args: Any, **options: Any) -> Any:
        asked.append(host)
        if host != "moves.example":
            return real(host, *args, **options)
        return real("8.8.8.8" if asked.count(host) > 1 else "127.0.0.1", None, type=socket.SOCK_STREAM)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", rebinding)
    told = await complaint(redis, f"https://moves.example:{met.port}/keys", "public")
    assert "may not be called" in told
    assert asked.count("moves.example") == 1
