"""Every address of Citadel, by the URL resolver and the table of WebSockets, and who may what there: what
docs/permissions.md shows.

What is decided of the API's addresses stands in `WHO_MAY` (`test_permissions.py`), of the console's and of WebSockets
here.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from django.urls import get_resolver

from citadel.urls import SOCKETS
from tests.gateway.access.test_permissions import EVERYBODY, SEERS, WHO_MAY

Who = frozenset[str]

KEYS = ("admin", "operator", "auditor", "developer", "owner", "member", "viewer", "server", "nobody")
PEOPLE = ("admin", "operator", "auditor", "owner", "member", "viewer", "developer")
"""Of the console: who is something in a team is a developer, the last is one without a team."""
IN_TEAM = frozenset({"owner", "member", "viewer"})
OF_TEAMS = ("/api/v1/keys", "/api/v1/teams", "/api/v1/budgets", "/api/v1/usage")
"""Where these may what is of their own team; elsewhere their team makes no difference."""
UNDESCRIBED: Mapping[str, Who] = {
    "openapi": frozenset(EVERYBODY),
    "plain_request": frozenset(EVERYBODY),  # of a WebSocket's address: who asks without wanting one is told so
}
"""What the description of the API leaves out, by the views' names."""
WHO_MAY_WATCH: Mapping[str, Who] = {"/ws/console": frozenset(SEERS)}
"""What is decided of WebSockets."""

ADMIN, OPERATORS, SEEING = frozenset({"admin"}), frozenset({"admin", "operator"}), frozenset(SEERS)
NOBODY: Who = frozenset()


class Page(NamedTuple):
    """Who may see, add, change and delete a kind of row in the console."""

    see: Who
    add: Who = NOBODY
    change: Who = NOBODY
    delete: Who = NOBODY


SEEN, ADMINS = Page(SEEING), Page(SEEING, ADMIN, ADMIN, ADMIN)
PAGES: Mapping[str, Page] = {
    "audit_record": Page(frozenset({"admin", "auditor"})),
    "auth_group": Page(ADMIN, ADMIN, ADMIN, ADMIN),
    "auth_user": Page(ADMIN, ADMIN, ADMIN, ADMIN),
    "gateway_assignment": ADMINS,
    "gateway_budget": Page(SEEING | IN_TEAM, ADMIN, ADMIN, ADMIN),
    "gateway_key": Page(SEEING | IN_TEAM, ADMIN | {"owner"}, ADMIN | {"owner"}),
    "gateway_price": ADMINS,
    "gateway_spend": Page(SEEING | IN_TEAM),
    "gateway_team": Page(SEEING | IN_TEAM, ADMIN, ADMIN, ADMIN),
    "mfa_authenticator": Page(ADMIN, delete=ADMIN),
    "orchestration_alias": ADMINS,
    "orchestration_delivery": SEEN,
    "orchestration_event": SEEN,
    "orchestration_hook": ADMINS,
    "orchestration_modelclass": ADMINS,
    "orchestration_receivedwebhook": SEEN,
    "orchestration_server": Page(SEEING, OPERATORS, ADMIN, OPERATORS),
    "orchestration_subscription": Page(SEEING, OPERATORS, OPERATORS, OPERATORS),
    "socialaccount_socialaccount": Page(ADMIN, delete=ADMIN),
}
SUFFIXES = {"changelist": "see", "history": "see", "change": "change", "add": "add", "delete": "delete"}

ANYBODY, SIGNED_IN = "anybody", "who is signed in"
AROUND: Mapping[str, str] = {
    "/": ANYBODY,  # which leads to the console
    "account_login": ANYBODY,
    "account_logout": ANYBODY,
    "account_reauthenticate": SIGNED_IN,
    "app_list": SIGNED_IN,
    "auth_user_password_change": "administrators",
    "autocomplete": SIGNED_IN,  # and there what is on the pages that one sees
    "catch_all": SIGNED_IN,
    "index": SIGNED_IN,
    "jsi18n": SIGNED_IN,
    "login": ANYBODY,  # Django's own, which allauth's hides
    "logout": ANYBODY,
    "mfa_activate_totp": SIGNED_IN,
    "mfa_add_webauthn": SIGNED_IN,
    "mfa_authenticate": ANYBODY,  # who has shown a password
    "mfa_deactivate_totp": SIGNED_IN,
    "mfa_download_recovery_codes": SIGNED_IN,
    "mfa_edit_webauthn": SIGNED_IN,
    "mfa_generate_recovery_codes": SIGNED_IN,
    "mfa_index": SIGNED_IN,
    "mfa_list_webauthn": SIGNED_IN,
    "mfa_login_webauthn": ANYBODY,
    "mfa_reauthenticate": SIGNED_IN,
    "mfa_reauthenticate_webauthn": SIGNED_IN,
    "mfa_remove_webauthn": SIGNED_IN,
    "mfa_view_recovery_codes": SIGNED_IN,
    "openid_connect_callback": ANYBODY,
    "openid_connect_login": ANYBODY,
    "own_sessions": SIGNED_IN,
    "password_change": SIGNED_IN,
    "password_change_done": SIGNED_IN,
    "row": SIGNED_IN,  # an address without a verb leads to the one that has it
    "socialaccount_login_cancelled": ANYBODY,
    "view_on_site": SIGNED_IN,
}
"""The console's addresses beside the pages about rows."""


class Route(NamedTuple):
    """An address, and its name in the tables above: an operation's of the API, or a page's of the console."""

    address: str
    name: str
    is_api: bool


def routes() -> list[Route]:
    """All that the resolver leads to, without what another hides."""
    found = {}
    for path, name, view in _walk(get_resolver().url_patterns, "/"):
        for route in _api(path, view) or [Route(f"GET {path}", _page(path, name), False)]:
            found.setdefault(route.address, route)
    return list(found.values())


def decision(route: Route) -> Who | str | None:
    """Who may use an address; None where nobody has decided."""
    if route.is_api:
        return _named().get(route.name) or UNDESCRIBED.get(route.name)
    model, _, verb = route.name.rpartition("_")
    if verb in SUFFIXES and model in PAGES:
        return frozenset(getattr(PAGES[model], SUFFIXES[verb]))
    return AROUND.get(route.name)


def cell(role: str, who: Who, *, of_teams: bool) -> str:
    """What the table says of a role."""
    return "" if role not in who else "own team" if of_teams and role in IN_TEAM else "yes"


def page() -> str:
    """docs/permissions.md."""
    api = [(route, decision(route)) for route in routes() if route.is_api]
    rows = [
        [f"`{route.address}`", *_cells(KEYS, who, route.address)] for route, who in api if isinstance(who, frozenset)
    ]
    sockets = [[f"`WS {path}`", *_cells(KEYS, WHO_MAY_WATCH.get(path, NOBODY), path)] for path in SOCKETS]
    console = [
        [f"`/admin/{model.replace('_', '/')}/`", verb, *(cell(role, who, of_teams=True) for role in PEOPLE)]
        for model, rights in sorted(PAGES.items())
        for verb, who in rights._asdict().items()
    ]
    around = [
        [f"`{route.address}`", str(AROUND[route.name])]
        for route in routes()
        if route.name in AROUND and not route.is_api
    ]
    return "\n".join(
        [
            INTRODUCTION,
            _table(["address", *KEYS], rows + sockets),
            CONSOLE,
            _table(["page", "to", *PEOPLE], console),
            BESIDE,
            _table(["address", "for"], sorted(around)),
            "",
        ]
    )


INTRODUCTION = """# Who may what, address by address

Generated from the routing and held against a running Citadel by `tests/gateway/access/test_routes.py` and
`tests/gateway/access/console/test_routes.py`: an address of which nothing is decided fails them. What the roles mean
stands in [access.md](access.md#roles).

## The API

By the role of a key. *Own team*: what lies in another team is answered like what is not there, by the same 404. Who may
not at all is told so (403), who brings no key too (401).
"""
CONSOLE = """
## The console

By the groups of a person; owner, member, viewer and developer are all of the group `developer`: who is that in a team,
and who belongs to none. *Own team*: what lies in another one is a 404, as what is not there is.
"""
BESIDE = """
Beside these pages:
"""


def _cells(roles: tuple[str, ...], who: Who, address: str) -> list[str]:
    of_teams = address.rsplit(maxsplit=1)[-1].startswith(OF_TEAMS)
    return [cell(role, who, of_teams=of_teams) for role in roles]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |")
        for row in (head, ["---"] * len(head), *rows)
    )


def _walk(patterns: list[Any], before: str) -> Iterator[tuple[str, str | None, Any]]:
    for pattern in patterns:
        path = before + str(pattern.pattern)
        if hasattr(pattern, "url_patterns"):
            yield from _walk(pattern.url_patterns, path)
        else:
            yield (
                re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", re.sub(r"\^?\(\?P(<\w+>)[^)]*\)(/?)\$", r"\1\2", path)),
                pattern.name,
                pattern.callback,
            )


def _api(path: str, view: Any) -> list[Route]:
    held = inspect.getclosurevars(view).nonlocals.get("self") if inspect.isfunction(view) else None
    operations = getattr(held, "operations", ())
    return [Route(f"{method} {path}", one.view_func.__name__, True) for one in operations for method in one.methods]


def _page(path: str, name: str | None) -> str:
    if name:
        return name
    return "/" if path == "/" else "catch_all" if path.endswith("{url}") else "row"


def _named() -> dict[str, Who]:
    """What is decided of the API's operations: those at two addresses are the same at both."""
    names = {route.address: route.name for route in routes() if route.is_api}
    return {names[address]: frozenset(who) for address, who in WHO_MAY.items() if address in names}
