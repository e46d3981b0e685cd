"""The page about one's own sessions: where one is signed in, and the end of what should not go on there."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from django.contrib import messages
from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AbstractUser
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac
from django.views.decorators.http import require_http_methods

from apps.gateway.access.console import witness
from apps.gateway.access.console.confirming import elsewhere
from apps.gateway.access.console.session import CLIENT, SEEN, SIGNED_IN
from apps.gateway.models import Session
from citadel.security_log import Event

OTHERS = "others"


class Shown(NamedTuple):
    """A session as its person sees it: never its key, which opens the console."""

    row: Session
    mark: str
    began: datetime
    seen: datetime
    address: str
    browser: str
    is_this: bool


@login_required
@require_http_methods(["GET", "POST"])
def page(request: HttpRequest) -> HttpResponseBase:
    """The list of them; by POST the end of the one that `session` marks, or of all others."""
    if request.method == "POST":
        return _end(request, request.POST.get("session", ""))
    return render(request, "console/sessions.html", {"sessions": list(_shown(request)), "others": OTHERS})


def _end(request: HttpRequest, chosen: str) -> HttpResponseBase:
    if first := elsewhere(request):
        return first
    ended = [one for one in _shown(request) if not one.is_this and chosen in (one.mark, OTHERS)]
    for one in ended:
        one.row.delete()
        witness.tell(Event.SESSION_ENDED, request, reason="ended by its person from another session")
    messages.success(request, f"Ended: {len(ended)}.")
    return redirect("own_sessions")


def _shown(request: HttpRequest) -> Iterator[Shown]:
    """Those in force, the last one first."""
    user = request.user
    assert isinstance(user, AbstractUser)  # noqa: S101  # who is signed in
    for row in Session.objects.filter(user_id=user.pk, expire_date__gt=timezone.now()).order_by("-expire_date"):
        held = row.get_decoded()
        if constant_time_compare(held.get(HASH_SESSION_KEY, ""), user.get_session_auth_hash()):
            address, browser = held.get(CLIENT, ("", ""))
            began, seen = (datetime.fromtimestamp(held.get(name, 0), UTC) for name in (SIGNED_IN, SEEN))
            is_this = row.session_key == request.session.session_key
            yield Shown(row, _mark(row.session_key), began, seen, address, browser, is_this)


def _mark(session_key: str) -> str:
    return salted_hmac("citadel.console.own_sessions", session_key).hexdigest()[:20]
