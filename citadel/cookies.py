"""Cookies as they come from strangers. Pure."""

LONGEST = 4096
"""Bytes of one, name and all: browsers keep no longer ones (RFC 6265, section 6.1)."""
MOST_ESCAPES = 256
"""Backslashes in all of them together, some times as many as Citadel's own have."""


def harmless(header: bytes) -> bytes:
    """A `cookie` header without what no browser would send back, for Python to read: up to 3.11.9 and 3.12.5 that takes
    a time that grows with the length times the backslashes of a value (CVE-2024-7592), minutes for a long one.
    """
    kept, left = [], MOST_ESCAPES
    for pair in header.split(b";"):
        escapes = pair.count(b"\\")
        if len(pair) <= LONGEST and escapes <= left:
            kept.append(pair)
            left -= escapes
    return b";".join(kept)


def value_of(header: bytes, name: str) -> str:
    """The value of the cookie of that name, as it stands there: the last one, as Django has it; empty where there is
    none.
    """
    found = b""
    for pair in header.split(b";"):
        its_name, _, value = pair.partition(b"=")
        if its_name.strip() == name.encode():
            found = value.strip()
    return found.decode("latin-1")
