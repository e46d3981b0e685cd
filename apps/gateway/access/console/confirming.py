"""What only somebody does who has just shown to be who they are: an open session that others find is not enough."""

import time
from typing import Any
from urllib.parse import urlencode

from allauth.account.adapter import get_adapter
from django.contrib import admin
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render

from apps.gateway.access.console.session import SHOWN

FRESH = 300
"""Seconds for which that is believed."""
SIGN_IN_AGAIN = "Sign out, sign in again, and do this within five minutes."


def elsewhere(request: HttpRequest) -> HttpResponseBase | None:
    """Where somebody goes first who has not shown it of late; None for who has. What was sent is not kept meanwhile."""
    if time.time() - request.session.get(SHOWN, 0) <= FRESH:
        return None
    ways = get_adapter().get_reauthentication_methods(request.user)
    if not ways:  # who has come by a provider shows it there
        return render(request, "console/refused.html", {"reason": SIGN_IN_AGAIN}, status=403)
    return redirect(f"{ways[0]['url']}?{urlencode({'next': request.get_full_path()})}")


class Confirmed(admin.ModelAdmin):
    """Pages of the administration whose changes are made by such people alone."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """The list, with what is done to many rows."""
        return _first(request) or super().changelist_view(request, extra_context)

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        """A row that is made or changed."""
        return _first(request) or super().changeform_view(request, *args, **options)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        """A row that is taken away."""
        return _first(request) or super().delete_view(request, object_id, extra_context)


def _first(request: HttpRequest) -> HttpResponseBase | None:
    return elsewhere(request) if request.method == "POST" else None
