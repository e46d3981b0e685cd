"""Where everything is. What begins with one of `LEAN` goes the lean way, the rest through Django's own handler, and
WebSockets by `SOCKETS`.
"""

from collections.abc import Mapping

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from apps.gateway.access.console import pages
from apps.gateway.access.oauth.metadata import WELL_KNOWN
from apps.orchestration import consumers
from citadel.api import api

MISPLACED = ("//", "/chat/completions", "/completions", "/embeddings", "/models")
"""Where programs ask whose base URL has no `/v1`, or a slash too many: nothing is there, and they are told so."""
LEAN = (
    "/v1",
    "/api/",
    "/health",
    "/orchestration",
    "/management",
    "/webhooks",
    "/metrics",
    "/ws/",
    WELL_KNOWN,
    *MISPLACED,
)
SOCKETS: Mapping[str, type[consumers.ConsoleSocket]] = {consumers.PATH: consumers.ConsoleSocket}
"""What speaks WebSocket, by its address."""

admin.site.site_header = admin.site.site_title = "Citadel"
admin.site.site_url = None
pages.arrange(admin.site)

handler500 = "apps.gateway.access.console.away.failed"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", include("apps.gateway.access.console.urls")),
    path("admin/", admin.site.urls),
    path("", api.urls),
]
