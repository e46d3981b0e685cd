"""Changing one's own password, which asks for the one so far."""

from typing import Any

from allauth.account.adapter import get_adapter
from django.contrib import admin
from django.contrib.admin.forms import AdminPasswordChangeForm
from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.views import PasswordChangeView
from django.http import HttpResponse
from django.urls import reverse_lazy

from apps.gateway.access.console import witness
from apps.gateway.access.console.store import end_all
from citadel.security_log import Event


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

    def form_valid(self, form: PasswordChangeForm) -> HttpResponse:
        """The new password is theirs, and this session the only one."""
        witness.tell(Event.PASSWORD_CHANGED, self.request)
        answer = super().form_valid(form)
        end_all(form.user.pk, but=self.request.session.session_key)
        return answer

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        """What all of the console's pages show, too."""
        return {**admin.site.each_context(self.request), **super().get_context_data(**context)}


change = admin.site.admin_view(Change.as_view())
