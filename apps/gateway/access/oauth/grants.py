"""The client credentials grant (RFC 6749, section 4.4), by oauthlib's rules for what a request may say.

oauthlib does no input and output of its own: it asks `_Rules`, which know the client already.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from oauthlib.common import Request
from oauthlib.oauth2 import (
    BearerToken,
    ClientCredentialsGrant,
    InvalidScopeError,
    RequestValidator,
    UnsupportedGrantTypeError,
)

from citadel.caller import Caller
from citadel.permissions import held_by

GRANT = "client_credentials"
PATH = "/api/v1/oauth/token"

MakeToken = Callable[[list[str]], str]
"""Of the permissions that the token is to have."""


class Granted(msgspec.Struct):
    """A token, to be sent like a key, in the words of RFC 6749, section 5.1."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str
    """The permissions that it has, separated by spaces."""


def grant(client: Caller, form: Mapping[str, str], make: MakeToken, seconds: int) -> Granted:
    """A token for a client that has proved who it is; oauthlib's OAuth2Error where it can't be given."""
    if form.get("grant_type", GRANT) != GRANT:
        raise UnsupportedGrantTypeError(f"The only grant here is {GRANT}.")
    rules = _Rules(client)
    # Of what else a form may hold oauthlib would take some for its own attributes.
    request = Request(PATH, "POST", {name: form[name] for name in ("grant_type", "scope") if name in form})
    ClientCredentialsGrant(rules).validate_token_request(request)
    bearer = BearerToken(rules, lambda asked: make(sorted(asked.scopes or ())), seconds)
    return msgspec.convert(bearer.create_token(request), Granted)


class _Client:
    """A client as oauthlib wants one."""

    def __init__(self, caller: Caller):
        self.client_id = caller.key_id
        self.permissions = held_by(caller)


class _Rules(RequestValidator):
    """What this client may be granted: permissions that it has itself, all of them unless it asks for fewer."""

    def __init__(self, caller: Caller):
        self._client = _Client(caller)

    def authenticate_client(self, request: Request, *_: Any, **__: Any) -> bool:
        """It has proved who it is."""
        request.client = self._client
        return True

    def validate_grant_type(self, client_id: str, grant_type: str, *_: Any, **__: Any) -> bool:
        return grant_type == GRANT

    def get_default_scopes(self, client_id: str, request: Request, *_: Any, **__: Any) -> list[str]:
        return sorted(self._client.permissions)

    def validate_scopes(self, client_id: str, scopes: list[str], *_: Any, **__: Any) -> bool:
        if scopes and set(scopes) <= self._client.permissions:
            return True
        has = ", ".join(sorted(self._client.permissions)) or "none"
        raise InvalidScopeError(f"A scope is one of the permissions that this key has, which are: {has}.")
