"""The system's resolver is asked for names, in threads: it may take half a minute to say that nobody answers."""

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address

IP = IPv4Address | IPv6Address

THREADS = 64
SLOW = 3.0
"""Seconds after which a look-up was slow."""
MOST = 4096
"""Names that are looked up, or wait for that; others are not found in time."""


class Lookups:
    """One look-up a name at a time, however many ask for it, and none where it is an address.

    A name whose last one took long shares threads with such names alone, so they never hold up all the others.
    """

    def __init__(self, threads: int = THREADS, slow: float = SLOW, most: int = MOST):
        self._slow = slow
        self._most = most
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[tuple[IP, ...]]] = {}
        self._were_slow: set[str] = set()
        self._pool = ThreadPoolExecutor(threads, "look-up")
        self._pool_of_slow = ThreadPoolExecutor(threads, "slow-look-up")

    def ask(self, host: str) -> Future[tuple[IP, ...]]:
        """What the resolver says of a name: none where it says nothing. It is not to be cancelled."""
        if address := _as_address(host):
            done: Future[tuple[IP, ...]] = Future()
            done.set_result((address,))
            return done
        with self._lock:
            if host in self._under_way:
                return self._under_way[host]
            if len(self._under_way) >= self._most:
                return Future()
            pool = self._pool_of_slow if host in self._were_slow else self._pool
            asked = self._under_way[host] = pool.submit(self._look_up, host)
            return asked

    def _look_up(self, host: str) -> tuple[IP, ...]:
        begun = time.monotonic()
        try:
            return look_up(host)
        finally:
            self._end(host, was_slow=time.monotonic() - begun > self._slow)

    def _end(self, host: str, *, was_slow: bool) -> None:
        with self._lock:
            del self._under_way[host]
            self._were_slow.discard(host)
            if was_slow:
                if len(self._were_slow) >= self._most:
                    self._were_slow.clear()
                self._were_slow.add(host)


def look_up(host: str) -> tuple[IP, ...]:
    """What the system's resolver says of a name, the odd spellings of addresses (`0x7f.1`) included."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        return ()
    return tuple(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))


def _as_address(host: str) -> IP | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
