"""What a worker tells browsers with each answer."""

import pytest

from citadel.sections import ServerSection
from citadel.serve import headers

YEAR = "max-age=31536000"


@pytest.mark.parametrize(
    ("public_url", "hsts", "told"),
    [
        ("https://citadel.example", "subdomains", f"{YEAR}; includeSubDomains"),
        ("https://citadel.example", "host", YEAR),
        ("https://citadel.example", "off", None),
        ("http://citadel.example", "subdomains", None),
        (None, "subdomains", None),
    ],
)
def test_through_tls_alone_where_it_is_reached_so(public_url: str | None, hsts: str, told: str | None) -> None:
    section = ServerSection.model_validate({"public_url": public_url, "hsts": hsts})
    assert dict(headers(section)).get("strict-transport-security") == told
