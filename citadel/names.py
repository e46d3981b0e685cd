"""The system's resolver is asked for names, in threads: it may take half a minute to say that nobody answers."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address

IP = IPv4Address | IPv6Address

THREADS = 64
PROMPT = 3.0
"""Seconds that a look-up takes at most that is prompt."""
MOST = 4096
"""Names that are looked up, or wait for that, that were prompt, and as many others; more are not found in time."""


class Lookups:
    """One look-up a name at a time, however many ask for it, and none where it is an address.

    Names whose last one was prompt have threads of their own: neither those that nobody answers for nor those that
    somebody makes up hold them up.
    """

    def __init__(self, threads: int = THREADS, prompt: float = PROMPT, most: int = MOST):
        self._prompt = prompt
        self._most = most
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[tuple[IP, ...]]] = {}
        self._were_prompt: dict[str, None] = {}
        """The one that was so longest ago first."""
        self._pool_of_prompt = ThreadPoolExecutor(threads, "look-up")
        self._pool_of_others = ThreadPoolExecutor(threads, "first-look-up")
        self._load: Counter[ThreadPoolExecutor] = Counter()
        """Names under way in each."""

    def ask(self, host: str) -> Future[tuple[IP, ...]]:
        """What the resolver says of a name: none where it says nothing. It is not to be cancelled."""
        if address := _as_address(host):
            done: Future[tuple[IP, ...]] = Future()
            done.set_result((address,))
            return done
        with self._lock:
            if host in self._under_way:
                return self._under_way[host]
            pool = self._pool_of_prompt if host in self._were_prompt else self._pool_of_others
            if self._load[pool] >= self._most:
                return Future()
            self._load[pool] += 1
            asked = self._under_way[host] = pool.submit(self._look_up, host, pool)
            return asked

    def _look_up(self, host: str, pool: ThreadPoolExecutor) -> tuple[IP, ...]:
        begun = time.monotonic()
        try:
            return look_up(host)
        finally:
            self._end(host, pool, was_prompt=time.monotonic() - begun <= self._prompt)

    def _end(self, host: str, pool: ThreadPoolExecutor, *, was_prompt: bool) -> None:
        with self._lock:
            del self._under_way[host]
            self._load[pool] -= 1
            self._were_prompt.pop(host, None)
            if was_prompt:
                self._were_prompt[host] = None
            if len(self._were_prompt) > self._most:  # not all of them: names that are made up could have that done
                del self._were_prompt[next(iter(self._were_prompt))]


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
