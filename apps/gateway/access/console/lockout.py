"""How often passwords may be guessed: counted per account and per address, for all workers, in the state Redis.

An attempt is counted before its password is looked at, so that many at once are no way round, and is taken back when it
was right. A name that nobody has is counted like one that somebody has. What is locked opens by itself within `WINDOW`
seconds, whatever is tried meanwhile; an address that is locked counts against no account. A browser
that has signed in to an account before is counted by itself: strangers can't lock it out.
"""

import hashlib
import time
import unicodedata
from dataclasses import dataclass
from ipaddress import ip_address

from django.core.cache import cache

from citadel import security_log
from citadel.client_address import network_of
from citadel.security_log import Event

WINDOW, MINUTE = 600, 60
"""Seconds."""
OF_ACCOUNT, OF_ADDRESS, OF_DEVICE = 10, 50, 10
"""Wrong passwords in a window."""


class Locked(Exception):
    """Too many wrong passwords; the message says when to try again."""

    def __init__(self, seconds: float):
        minutes = max(1, -int(-seconds // 60))
        super().__init__(f"Too many attempts. Try again in {minutes} {'minute' if minutes == 1 else 'minutes'}.")


@dataclass(frozen=True)
class Attempt:
    """A password that is being looked at."""

    counters: tuple[str, ...]

    def take_back(self) -> None:
        """It was right: it counts no more."""
        for name in self.counters:
            try:
                cache.decr(name)
            except ValueError:  # its window has ended meanwhile
                continue


def attempt(account: str, address: str, device: str | None) -> Attempt:
    """Counts one; Locked where there were too many. `device` is that of a browser which is known to the account."""
    if device:
        bounds = {_name("device", device): OF_DEVICE}
    else:
        bounds = {_name("address", _network(address)): OF_ADDRESS, _name("account", plain(account)): OF_ACCOUNT}
    for name, most in bounds.items():
        count = _count(name)
        if count == most + 1:
            security_log.tell(Event.SIGN_IN_LOCKED, what=name, address=address)
        if count > most:
            raise Locked(_opens_in(name))
    return Attempt(tuple(bounds))


def check_stranger(address: str, what: str, most: int) -> None:
    """Counts what somebody asks for who has not signed in; Locked after so many in a minute from one address, 0 is no
    limit.
    """
    name = _name(what, _network(address))
    if most and _count(name, MINUTE) > most:
        raise Locked(_opens_in(name))


def plain(account: str) -> str:
    """A name without the differences that a guesser could make up, to be counted under."""
    return unicodedata.normalize("NFKC", account).strip().casefold()


def _name(kind: str, of: str) -> str:
    """Of one length whatever was sent."""
    return f"lockout:{kind}:{hashlib.sha256(of.encode()).hexdigest()[:32]}"


def _network(address: str) -> str:
    try:
        return network_of(ip_address(address))
    except ValueError:
        return network_of(None)


def _count(name: str, window: int = WINDOW) -> int:
    cache.add(name, 0, window)
    try:
        count = cache.incr(name)
    except ValueError:  # its window has ended between the two
        return 1
    if count <= 1:  # also where it has ended within `incr`, or `decr`, which make another one that would not end
        cache.touch(name, window)
        cache.set(f"{name}:opens", int(time.time()) + window, window)
    return count


def _opens_in(name: str) -> float:
    return float(cache.get(f"{name}:opens", 0) - time.time())
