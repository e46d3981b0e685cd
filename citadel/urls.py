"""Where everything is. What begins with one of `LEAN` goes the lean way, the rest through Django's own handler."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from citadel.api import api

LEAN = ("/v1", "/api/", "/health", "/orchestration", "/management", "/webhooks", "/metrics", "/ws/")

admin.site.site_header = admin.site.site_title = "Citadel"
admin.site.site_url = None

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("", api.urls),
]
