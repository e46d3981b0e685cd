"""Where everything is. What begins with one of `LEAN` goes the lean way, the rest through Django's own handler."""

from django.contrib import admin
from django.urls import path

from citadel.api import api

LEAN = ("/v1", "/api/", "/health", "/orchestration", "/management", "/webhooks", "/metrics")

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", api.urls),
]
