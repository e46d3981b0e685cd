"""Open files and sockets: what to know before a server is blamed for a connection that we could not open."""

import os


def none_left() -> bool:
    """Whether it is us who can't open anything: this process, or its machine, has as many open as it may."""
    try:
        os.close(os.dup(2))
    except OSError:
        return True
    return False
