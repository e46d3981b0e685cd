"""Asks a server which models it holds."""

import httpx

from apps.orchestration.dialects import DIALECTS, FoundModel

TIMEOUT = httpx.Timeout(10.0, connect=5.0)
LARGEST_ANSWER = 8 * 1024 * 1024


class DiscoveryFailed(Exception):
    """The server didn't tell its models; the message says what happened and where."""


def discover(url: str, kind: str, api_key: str = "") -> list[FoundModel]:
    """The models of the server at `url`; DiscoveryFailed when it can't be asked or doesn't answer as its kind does."""
    dialect = DIALECTS[kind]
    address = f"{url}{dialect.models_path}"
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(address, headers=headers, timeout=TIMEOUT, follow_redirects=False, trust_env=False)
        response.raise_for_status()
        if len(response.content) > LARGEST_ANSWER:
            raise DiscoveryFailed(f"{address} answered with more than {LARGEST_ANSWER} bytes")
        payload = response.json()
    except httpx.HTTPStatusError as error:
        raise DiscoveryFailed(f"{address} answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DiscoveryFailed(f"{address} can't be asked: {error or type(error).__name__}") from None
    except ValueError:
        raise DiscoveryFailed(f"{address} did not answer with JSON") from None
    try:
        return dialect.read_models(payload)
    except (AttributeError, TypeError, ValueError, OverflowError):  # it is JSON, of any shape
        raise DiscoveryFailed(f"{address} did not answer with a list of models") from None
