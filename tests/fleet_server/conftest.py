"""One server for all tests of a file; it behaves well again before each."""

from collections.abc import Iterator

import pytest

from tests.fleet.control import Fleet


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    """A server of the OpenAI kind that says eight tokens."""
    with Fleet.start(kind="openai", models=["tiny", "other"], tokens=8) as server:
        yield server


@pytest.fixture
def server(running: Fleet) -> Fleet:
    """The same, well behaved, with an empty log."""
    running.behave()
    running.clear()
    return running
