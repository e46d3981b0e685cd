"""Addresses that nobody may have Citadel call, in every spelling that some parser or resolver takes for one.

`HOSTS` are refused wherever the networks allow `public` alone; `NEVER` also where they allow all that there are. `URLS`
lead nowhere on the web. All are used on each of the four surfaces: servers of the fleet as they register, the same when
they are probed and asked, subscribers of webhooks, and issuers of tokens and OpenID providers.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = (
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.127.127.127",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    "017700000001",
    "0177.0.0.1",
    "0177.0.0.01",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
)
PRIVATE = (
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "167772161",
    "0xc0a80101",
    "[fd12::1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:0:10.0.0.1]",
    "[64:ff9b::a00:1]",
    "[2002:a00:1::]",
)
NEVER = (
    "0.0.0.0",
    "0",
    "0x0",
    "[::]",
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.16689662",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "255.255.255.255",
    "224.0.0.1",
    "[::ffff:169.254.169.254]",
    "[::ffff:0:169.254.169.254]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "[fe80::1]",
    "[fe80::5efe:7f00:1]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "[fd00:42::42]",
    "[fd00:100::100:200]",
    "[fd00:c1::a9fe:a9fe]",
    "[fd00:a9fe:a9fe::1]",
    "[ff02::1]",
    "metadata.google.internal",
    "METADATA.google.internal.",
    "metadata.goog",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
)
NOWHERE = ("192.0.2.1", "198.18.0.1", "203.0.113.7", "240.0.0.1", "[2001:db8::1]", "[2001::1]", "[100::1]", "[5f00::1]")
HOSTS = (*LOOPBACK, *PRIVATE, *NEVER, *NOWHERE)

URLS = (
    "",
    "x",
    "http://",
    "http:///keys",
    "//127.0.0.1/keys",
    "ftp://127.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:6379/info",
    "ws://127.0.0.1/",
    "javascript:alert(1)",
    "data:application/json,{}",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:65536/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:80:80/",
    "http://127.0.0.1:x/",
    "http://[::1/",
    "http://user:password@127.0.0.1/",
    "http://user@127.0.0.1/",
    "http://receiver.example@127.0.0.1/",
    "http://127.0.0.1\\@receiver.example/",
    "http://receiver.example\r\nhost: 127.0.0.1/",
    "http://\0/",
)

EVERYTHING = ("loopback", "private", "public", "0.0.0.0/0", "::/0")
"""All that a setting can allow."""
REFUSAL = "may not be called|Invalid|has no address|Failed to parse|[Nn]ot a valid"
"""What is said of one of `HOSTS`: that it is refused, or that it is no host at all."""


def at_port(url: str, port: int) -> str:
    """One of `URLS` that leads to this port, where it says none itself."""
    return url.replace("127.0.0.1/", f"127.0.0.1:{port}/")


class Trap:
    """Listens wherever this machine may be met, and answers nobody."""

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self.port = int(listener.getsockname()[1])

    def was_met(self) -> bool:
        """Whether somebody has connected to it since it was asked last."""
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@contextmanager
def trap(host: str = "") -> Iterator[Trap]:
    """One with a port of its own, at all of this machine's addresses unless at one."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=both, backlog=128) as listener:
        listener.setblocking(False)
        yield Trap(listener)
