"""Ports of the loopback interface for our own servers: free ones, the same at every start where they still are."""

import json
import random
import socket

from citadel.embedded.home import Home, write_private_json

# Below what Linux gives to outgoing connections (32768 to 60999): a port that is free now will not be one of those.
RANGE = range(20000, 32000)
LOOPBACK = "127.0.0.1"


def port(home: Home, name: str) -> int:
    """A free port for NAME, remembered in the home."""
    file = home.path / "ports.json"
    try:
        known = {str(key): int(value) for key, value in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    if name in known and free(known[name]):
        return known[name]
    others = set(known.values())
    chosen = next(number for number in random.sample(RANGE, len(RANGE)) if number not in others and free(number))
    write_private_json(file, {**known, name: chosen})
    return chosen


def free(number: int) -> bool:
    """Whether nobody has this port of the loopback interface."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LOOPBACK, number))
        except (OSError, OverflowError):
            return False
    return True
