"""What a test adds to each limit of time that it asserts, and by what it multiplies those of CPU time."""

import os
import timeit

HELD_UP = float(os.environ.get("HELD_UP", "3"))
"""Seconds for which a machine that runs other tests as well may hold anything up; none in `bin/test faults`, which
holds the fleet to the figures that are promised. Else a limit only tells that something came by itself, and not in
another and later way; how fast it is, is for `bin/bench` to say."""

COUNTS_IN = 0.010
"""Seconds in which a core of a usual machine, for which figures of CPU time are promised, counts to 200,000."""

COPIES_IN = 0.025
"""Seconds in which it copies 64 MB to pages that it takes from the kernel for this, as it does for long texts: there
are machines that count as fast as others and take 55 ms for it. An estimate, not measured on a usual machine: 16,384
new pages at half a microsecond, and 8 ms each for clearing and for copying."""


def slowness() -> float:
    """How many times as long as a usual machine this one takes for what it computes at the moment, 1 at least; twice
    that where other tests run beside it, whose share of the caches comes and goes.
    """
    counted = timeit.repeat("for number in range(200_000): total += number", "total = 0", number=1, repeat=5)
    copied = timeit.repeat("bytearray(text)", "text = bytes(64 * 1024 * 1024)", number=1, repeat=5)
    return max(1.0, min(counted) / COUNTS_IN, min(copied) / COPIES_IN) * (2 if HELD_UP else 1)
