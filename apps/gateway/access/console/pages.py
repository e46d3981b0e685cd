"""The console's pages about how people sign in: to see, to take away what was lost, and to end their sessions."""

from typing import Any, ClassVar

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.gateway.access.console import witness
from apps.gateway.access.console.confirming import Confirmed, elsewhere
from apps.gateway.access.console.store import end_all
from citadel.rows import Discreet, ReadOnly
from citadel.security_log import Event


class Removable(Confirmed, ReadOnly):
    """What people have made themselves, of which others see no secret and may take it away."""

    list_filter: ClassVar[Any] = ()
    search_fields = ("user__username",)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Ends the sessions too that may stand on it, but for the own."""
        super().delete_model(request, obj)
        end_all(obj.user_id, but=request.session.session_key)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """The same for several."""
        whose = set(queryset.values_list("user_id", flat=True))
        super().delete_queryset(request, queryset)
        for user_id in whose:
            end_all(user_id, but=request.session.session_key)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Administrators may."""
        return request.user.has_perm(f"{self.opts.app_label}.delete_{self.opts.model_name}")


class SecondFactors(Removable, Discreet):
    """Second factors: somebody who has lost theirs, codes included, signs in without once these are taken away."""

    secrets = ("data",)
    fields = list_display = ("user", "type", "created_at", "last_used_at")


class ProvidersPeople(Removable, Discreet):
    """Who has come by an OpenID provider: without its row here the next time makes another account."""

    secrets = ("extra_data",)
    fields = list_display = ("user", "provider", "uid", "date_joined", "last_login")


class Accounts(Confirmed, UserAdmin):
    """Accounts, of which an administrator ends all sessions."""

    actions = ("end_sessions",)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> Any:  # Django's
        """Another password for somebody."""
        return elsewhere(request) or super().user_change_password(request, id, form_url)

    @admin.action(description="End all their sessions, but this one", permissions=["change"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Of the accounts that are chosen: at their next request, and within five seconds of what they watch."""
        for user in queryset:
            ended = end_all(user.pk, but=request.session.session_key)
            details = {"account": user.get_username(), "by": request.user.get_username(), "sessions": ended}
            witness.tell(Event.SESSION_ENDED, request, **details, reason="ended by an administrator")
            self.log_change(request, user, f"Ended {ended} sessions.")
            messages.success(request, f"Sessions of {user.get_username()} that were ended: {ended}.")


def arrange(site: AdminSite) -> None:
    """Puts these in place of Django's and allauth's own pages, which show secrets and change what the settings say."""
    for model in (User, EmailAddress, SocialApp, SocialToken, Authenticator, SocialAccount):
        site.unregister(model)
    site.register(User, Accounts)
    site.register(Authenticator, SecondFactors)
    site.register(SocialAccount, ProvidersPeople)
