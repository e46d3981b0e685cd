"""Where one signs in to the console, before Django's own pages: there is no other form for a password."""

from allauth.account import views as accounts
from allauth.socialaccount import views as people
from allauth.socialaccount.providers.openid_connect import views as openid
from django.urls import include, path

from apps.gateway.access.console import own_sessions, password

urlpatterns = [
    path("login/", accounts.login, name="account_login"),
    path("logout/", accounts.logout, name="account_logout"),
    path("confirm/", accounts.reauthenticate, name="account_reauthenticate"),
    path("password_change/", password.change, name="password_change"),
    path("sessions/", own_sessions.page, name="own_sessions"),
    path("second-factor/", include("allauth.mfa.urls")),
    path("oidc/cancelled/", people.login_cancelled, name="socialaccount_login_cancelled"),
    path("oidc/<slug:provider_id>/login/", openid.login, name="openid_connect_login"),
    path("oidc/<slug:provider_id>/login/callback/", openid.callback, name="openid_connect_callback"),
]
