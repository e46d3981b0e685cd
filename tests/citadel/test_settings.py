"""The console's settings behind a proxy that speaks TLS."""

from pathlib import Path

import pytest

from citadel.config import read
from citadel.sections import ConfigError


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://citadel.example", "https://citadel.example"),
        ("https://Citadel.Example:443/", "https://citadel.example"),
        ("http://citadel.example:80", "http://citadel.example"),
        ("https://citadel.example:8443", "https://citadel.example:8443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_the_public_address_is_kept_as_browsers_say_it(tmp_path: Path, given: str, origin: str) -> None:
    tree, _ = read({"CITADEL_HOME": str(tmp_path), "CITADEL_SERVER__PUBLIC_URL": given})
    assert tree.server.public_url == origin


@pytest.mark.parametrize(
    "given",
    [
        "citadel.example",
        "ftp://citadel.example",
        "https://",
        "https://citadel.example/portal",
        "https://a:b",
        "https://[a",
        "https://user@citadel.example",
        "https://citadel.example?x=1",
        "https://*.example",
    ],
)
def test_what_is_no_public_address_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match=r"PUBLIC_URL: server\.public_url: it must be like https://citadel\.example"):
        read({"CITADEL_HOME": str(tmp_path), "CITADEL_SERVER__PUBLIC_URL": given})
