"""The console's pages about how people sign in: to see, and to take away what was lost."""

from typing import Any, ClassVar

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from django.contrib.admin import AdminSite
from django.http import HttpRequest

from citadel.rows import Discreet, ReadOnly


class Removable(ReadOnly):
    """What people have made themselves, of which others see no secret and may take it away."""

    list_filter: ClassVar[Any] = ()
    search_fields = ("user__username",)

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


def arrange(site: AdminSite) -> None:
    """Puts these in place of allauth's own pages, which show secrets and change what the settings say."""
    for model in (EmailAddress, SocialApp, SocialToken, Authenticator, SocialAccount):
        site.unregister(model)
    site.register(Authenticator, SecondFactors)
    site.register(SocialAccount, ProvidersPeople)
