"""The blocks of an event stream, one for each event, cut out of the packets that it comes in.

Pure. Lines may end in any of the three ways, and packets anywhere; each byte is looked at once, however small they are.
Format: the WHATWG HTML standard, "Server-sent events", 9.2.6.
"""


class Blocks:
    """Gathers packets. `size` is how many bytes wait for the end of their block."""

    def __init__(self) -> None:
        self.size = 0
        self._begun = bytearray()
        self._held = b""
        """The end of a line, which may turn out to be half of a longer one, or of a blank line."""

    def feed(self, packet: bytes, *, at_end: bool = False) -> list[bytes]:
        """Takes what came, gives the blocks that it completes, with their lines ended by a newline alone. Nothing
        more comes `at_end`.
        """
        text, held = self._held + packet, b""
        if b"\r" in text:
            if text.endswith(b"\r") and not at_end:
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, rest = text.split(b"\n\n")
        if blocks:
            blocks[0] = b"".join((self._begun, blocks[0]))
            self.clear()
        if rest.endswith(b"\n"):
            rest, held = rest[:-1], b"\n" + held
        self._begun += rest
        self._held = held
        self.size = len(self._begun) + len(held)
        return blocks

    def clear(self) -> None:
        """Lets go of what waits."""
        self.size, self._held = 0, b""
        self._begun = bytearray()  # clearing would keep its memory
