"""Changing one's own password, which asks for the one so far."""

from typing import Any

from allauth.account.adapter import get_adapter
from django.contrib import admin
from django.contrib.admin.forms import AdminPasswordChangeForm
from django.contrib.auth.views import PasswordChangeView
from django.urls import reverse_lazy


class ChangeForm(AdminPasswordChangeForm):
    """Django's, but who has found an open session guesses no more there than anybody at the door."""

    def clean_old_password(self) -> str:
        """The password so far; ValidationError where it is another one, or after too many."""
        given: str = self.cleaned_data["old_password"]
        if not get_adapter().reauthenticate(self.user, given):
            raise get_adapter().validation_error("incorrect_password")
        return given


class Change(PasswordChangeView):
    """The console's page for it."""

    form_class = ChangeForm
    success_url = reverse_lazy("admin:password_change_done")

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        """What all of the console's pages show, too."""
        return {**admin.site.each_context(self.request), **super().get_context_data(**context)}


change = admin.site.admin_view(Change.as_view())
