"""What the console shows where a page can't be made: that the database is away, as far as that is why."""

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.views.defaults import server_error

RETRY_AFTER = 5


def failed(request: HttpRequest) -> HttpResponse:
    """The page of an error that nobody has handled. It is asked for while Django handles it (`handler500`)."""
    if isinstance(sys.exc_info()[1], OperationalError | InterfaceError):
        # Not by the request: who is signed in, as the layout says, stands in the database.
        page = render_to_string("console/away.html")
        return HttpResponse(page, status=503, headers={"Retry-After": str(RETRY_AFTER)})
    return server_error(request)
