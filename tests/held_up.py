"""What a test adds to each limit of time that it asserts."""

import os

HELD_UP = float(os.environ.get("HELD_UP", "3"))
"""Seconds for which a machine that runs other tests as well may hold anything up; none in `bin/test faults`, which
holds the fleet to the figures that are promised. Else a limit only tells that something came by itself, and not in
another and later way; how fast it is, is for `bin/bench` to say."""
