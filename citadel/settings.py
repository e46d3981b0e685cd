"""Django's settings, all of them out of the configuration tree."""

import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.http.request import split_domain_port
from psycopg.pq import Conninfo
from redis.backoff import NoBackoff
from redis.retry import Retry

from citadel import config as configuration
from citadel import logs
from citadel.database import NOTICES_SILENCE, parameters
from citadel.sections import ConfigError

try:
    CONFIG = configuration.load()
    SECRET_KEY = CONFIG.secret
except ConfigError as problem:
    raise ImproperlyConfigured(str(problem)) from None

DEBUG = CONFIG.env == "development"
PUBLIC_URL = CONFIG.server.public_url
ALLOWED_HOSTS = [
    *CONFIG.server.allowed_hosts,
    *([split_domain_port(urlsplit(PUBLIC_URL).netloc)[0]] if PUBLIC_URL else []),
]
ROOT_URLCONF = "citadel.urls"
ASGI_APPLICATION = "citadel.asgi.application"

INSTALLED_APPS = [
    "apps.gateway",  # before Django's and allauth's: it replaces a command of the one, and templates of both
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "servestatic.runserver_nostatic",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "ninja",
    "apps.audit",
    "apps.orchestration",
]
MIDDLEWARE = [
    "apps.gateway.access.console.headers.security_headers",
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "apps.gateway.access.console.door.Door",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def database(url: str) -> dict[str, object]:
    """Django's form of an address, as libpq reads it: migrations and workers must mean the same database."""
    given = parameters(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": given.pop("dbname", "") or usual_name(given),
        "USER": given.pop("user", ""),
        "PASSWORD": given.pop("password", ""),
        "HOST": given.pop("host", ""),
        "PORT": given.pop("port", ""),
        "CONN_MAX_AGE": 0,
        "OPTIONS": {"application_name": "citadel", "connect_timeout": 5, **NOTICES_SILENCE, **given},
    }


def usual_name(given: Mapping[str, str]) -> str:
    """The database that libpq takes where an address names none; a service's file says it itself."""
    if "service" in given:
        return ""
    usual = {option.keyword.decode(): option.val.decode() for option in Conninfo.get_defaults() if option.val}
    return usual.get("dbname") or given.get("user") or usual["user"]


# Without an address commands that need no database still run; those that do say how to get one.
DATABASES = {"default": database(CONFIG.database_url)} if CONFIG.database_url else {}
# Counts of attempts to sign in, and codes that were used: what all workers must know, and no more than that.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CONFIG.redis_url,
        "KEY_PREFIX": "console",
        "OPTIONS": {
            "serializer": "django.core.signing.JSONSerializer",  # the usual one would run what it reads
            "socket_timeout": 2,
            "socket_connect_timeout": 2,
            "retry": Retry(NoBackoff(), 0),  # somebody waits for it
        },
    }
    if CONFIG.redis_url
    else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTHENTICATION_BACKENDS = ["apps.gateway.access.console.assigned.People"]
PASSWORD_HASHERS = [
    "apps.gateway.access.console.digest.Argon2id",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",  # of accounts from before; kept anew when they next sign in
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "apps.gateway.access.console.words.WithoutKnownWords"},
]
CSRF_FAILURE_VIEW = "apps.gateway.access.console.witness.refuse_form"
# A proxy that speaks TLS passes plain HTTP on: it is the browser's address that forms are checked against, and by the
# operator's word, not by a header that anyone may send.
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL] if PUBLIC_URL else []
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = bool(PUBLIC_URL and PUBLIC_URL.startswith("https:"))
# By which browsers take them from this host alone, for the whole of it and through TLS (RFC 6265bis, 4.1.3.2).
COOKIE_PREFIX = "__Host-" if SESSION_COOKIE_SECURE else ""
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = f"{COOKIE_PREFIX}sessionid", f"{COOKIE_PREFIX}csrftoken"
MESSAGE_STORAGE = "apps.gateway.access.console.notices.Notices"
SESSION_COOKIE_HTTPONLY = True
SESSION_ENGINE = "apps.gateway.access.console.store"
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = CONFIG.console.session_idle  # from its last use on
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = False  # each answer says so already, the API's too (citadel/serve.py)
# Bodies are in memory already when Django gets them: it need not write them to the disk.
DATA_UPLOAD_MAX_MEMORY_SIZE = FILE_UPLOAD_MAX_MEMORY_SIZE = CONFIG.security.max_body_mb * 1024 * 1024

LOGIN_URL, LOGIN_REDIRECT_URL = "account_login", "admin:index"
ACCOUNT_ADAPTER = "apps.gateway.access.console.sign_in.Accounts"
ACCOUNT_FORMS = {"login": "apps.gateway.access.console.sign_in.SignInForm"}
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]  # nobody signs up; without a password here nobody could sign in
ACCOUNT_EMAIL_VERIFICATION = SOCIALACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_UNIQUE_EMAIL = False
ACCOUNT_SESSION_REMEMBER = False
ACCOUNT_REAUTHENTICATION_METHODS = ["password", "mfa"]
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_DEFAULT_HTTP_PROTOCOL = "https" if SESSION_COOKIE_SECURE else "http"
# Passwords are counted by `lockout`; wrong codes of a second factor by allauth. What can't be guessed is not counted.
ACCOUNT_RATE_LIMITS = {"login": None, "login_failed": "5/5m/key"}
MFA_ADAPTER = "apps.gateway.access.console.second_factor.Factors"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_RECOVERY_CODE_DIGITS = 10
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_TOTP_TOLERANCE = 1
MFA_FORMS = {
    "authenticate": "apps.gateway.access.console.factor_forms.Code",
    "reauthenticate": "apps.gateway.access.console.factor_forms.CodeAgain",
    "authenticate_webauthn": "apps.gateway.access.console.factor_forms.SecurityKey",
    "reauthenticate_webauthn": "apps.gateway.access.console.factor_forms.SecurityKeyAgain",
    "login_webauthn": "apps.gateway.access.console.factor_forms.Passkey",
}
MFA_RATE_LIMITS = {"webauthn_login": None}
SOCIALACCOUNT_ADAPTER = "apps.gateway.access.console.providers.People"
SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = ""
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "APPS": [
            {
                "provider_id": provider.name,
                "name": provider.title or provider.name,
                "client_id": provider.client_id,
                "secret": provider.client_secret.get_secret_value(),
                "settings": {
                    "server_url": provider.issuer.rstrip("/"),
                    "scope": list(provider.scopes),
                    "oauth_pkce_enabled": True,
                },
            }
            for provider in CONFIG.console.providers
        ]
    }
}

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
STATIC_URL = "/static/"
SERVESTATIC_USE_FINDERS = True

LOGGING_CONFIG = None
if "test" not in sys.argv:
    logs.configure(CONFIG.log.level)
