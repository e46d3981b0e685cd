"""Who holds a connection open: a credential that is looked at again while it lasts.

An API key, or the console's session, which a browser sends along whatever page it shows: only our own may use it.
That a connection is asked for is counted like a request.
"""

from collections.abc import Mapping

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.db import DatabaseError
from django.http.request import split_domain_port, validate_host

from apps.gateway.access.bearer import bearer_of, carries_credential, receive
from apps.gateway.access.certificates.presented import is_a_browsers
from apps.gateway.access.console.session import Standing, find, rights, standing
from apps.gateway.access.signatures.verifier import Proven, is_signed
from apps.gateway.runtime import Runtime
from citadel.body import Scope, headers_of
from citadel.caller import Caller
from citadel.cookies import value_of
from citadel.database import in_thread
from citadel.errors import Forbidden, Unauthenticated, Unavailable
from citadel.origin import origin_of

MAY_SEE = ("orchestration.view_server", "orchestration.view_event")
"""The console's permissions that stand for seeing the fleet."""
NOBODY = "Log in to the console, or send an API key: Authorization: Bearer KEY."


class HeldKey:
    """An API key or a token; this worker knows within a second that it was revoked."""

    recheck_after = 1.0

    def __init__(self, scope: Scope, headers: Mapping[bytes, bytes], runtime: Runtime):
        self._scope = scope
        self._headers = headers
        self._runtime = runtime

    async def caller(self) -> Caller:
        """Who holds it now."""
        caller = await bearer_of(self._headers, self._runtime)
        receive(caller, self._scope, self._headers, self._runtime)
        return caller

    async def counted(self) -> Caller:
        """The same where a connection is asked for; Refused where its holder asks too often."""
        caller = await self.caller()
        await self._runtime.floods.check(caller.key_id)
        return caller


class HeldSignature(HeldKey):
    """A signature of the request that began it: proven once; from then on its key is looked at."""

    _proven: Proven | None = None

    async def caller(self) -> Caller:
        """Who holds the key now, by the secret that it had."""
        signatures = self._runtime.signatures
        if self._proven is None:
            self._proven = await signatures.prove(self._scope, self._headers, b"")
            caller = self._proven.caller
        else:
            caller = await signatures.still(self._proven)
        receive(caller, self._scope, self._headers, self._runtime)
        return caller


class HeldCertificate(HeldKey):
    """A client's certificate, which a trusted proxy has reported when it began."""

    async def caller(self) -> Caller:
        """Who holds the key that it is tied to now."""
        certificate = self._runtime.certificates.presented(self._scope, self._headers)
        if certificate is None:
            raise Unauthenticated(NOBODY)
        caller = await self._runtime.certificates.caller(certificate, self._headers)
        receive(caller, self._scope, self._headers, self._runtime)
        return caller


class HeldSession:
    """The console's session of a member of staff who may see servers and events there."""

    recheck_after = 3.0

    def __init__(self, session_key: str, scope: Scope, headers: Mapping[bytes, bytes], runtime: Runtime):
        self._session_key = session_key
        self._scope = scope
        self._headers = headers
        self._runtime = runtime

    async def caller(self) -> Caller:
        """Whose it is now."""
        try:
            return await in_thread(_staff, self._session_key)
        except DatabaseError:
            message = "Sessions can't be checked at the moment."
            raise Unavailable(message, code="auth_unavailable", retry_after=2) from None

    async def counted(self) -> Caller:
        """The same where a connection is asked for; Refused where too many are from one address. It is counted before
        the database is asked: anybody can make up sessions.
        """
        address = self._runtime.proxies.client(self._scope, self._headers)
        await self._runtime.floods.check_stranger(address)
        return await self.caller()


Held = HeldKey | HeldSession


def held(scope: Scope, runtime: Runtime) -> Held:
    """The credential that a request brings; Unauthenticated where it brings none, Forbidden from a foreign page."""
    headers = headers_of(scope["headers"])
    if carries_credential(headers):
        return HeldKey(scope, headers, runtime)
    if is_signed(headers):
        return HeldSignature(scope, headers, runtime)
    session_key = _session_key(headers)
    if runtime.certificates.presented(scope, headers) and not (session_key and is_a_browsers(headers)):
        return HeldCertificate(scope, headers, runtime)
    if not session_key:
        raise Unauthenticated(NOBODY)
    if not is_own_page(headers, scope["scheme"]):
        raise Forbidden("The console's session holds for the console's own pages.", code="foreign_origin")
    return HeldSession(session_key, scope, headers, runtime)


def is_own_page(headers: Mapping[bytes, bytes], scheme: str) -> bool:
    """Whether a browser says that the page which asks is one of ours."""
    origin, public_url = headers.get(b"origin", b"").decode("latin-1"), settings.PUBLIC_URL
    if public_url and origin == public_url:
        return True
    own = origin_of(scheme, headers.get(b"host", b""), public_url)
    return validate_host(split_domain_port(own.host)[0], settings.ALLOWED_HOSTS) and origin == str(own)


def _session_key(headers: Mapping[bytes, bytes]) -> str:
    return value_of(headers.get(b"cookie", b""), settings.SESSION_COOKIE_NAME)


def _staff(session_key: str) -> Caller:
    session, user = find(session_key)
    if not isinstance(user, AbstractUser):
        raise Unauthenticated(NOBODY)
    if not (user.is_staff and user.has_perms(MAY_SEE)):
        raise Forbidden("This account may not see servers and events.", whose=user.get_username())
    if standing(session, user, rights(user)) is not Standing.IN_FORCE:
        raise Unauthenticated(NOBODY)
    return Caller("", user.get_username(), "", "auditor", frozenset())
