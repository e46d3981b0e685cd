"""What is secret of a row is on no page of the console, and no filter of a list tells it letter by letter."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from django.utils import timezone

from tests.gateway.access.console.test_routes import role
from tests.gateway.access.console.test_teams import Belongings, belongings, other, own
from tests.gateway.access.console.visitor import Visitor
from tests.gateway.access.routes import PAGES, SEEING

__all__ = ["belongings", "other", "own", "role"]

SECRETS = {
    "gateway_key": ("digest", "former_digest"),
    "mfa_authenticator": ("data",),
    "orchestration_hook": ("token_digest", "salt"),
    "orchestration_server": ("api_key",),
    "orchestration_subscription": ("salt", "previous_salt"),
    "socialaccount_socialaccount": ("extra_data",),
}


def hidden() -> str:
    """What no page may hold."""
    return f"hidden{secrets.token_hex(8)}"


def of_the_fleet() -> Iterator[tuple[str, Any]]:
    """A row of each kind, and its page."""
    from apps.orchestration import models as fleet

    name = f"row-{secrets.token_hex(4)}"
    hook = fleet.Hook.objects.create(name=name, token_digest=hidden(), salt=hidden())
    target = fleet.Subscription.objects.create(
        url="http://127.0.0.1:9/", enabled=False, salt=hidden(), previous_salt=hidden()
    )
    yield "orchestration_hook", hook
    yield "orchestration_subscription", target
    yield "orchestration_receivedwebhook", fleet.ReceivedWebhook.objects.create(hook=hook)
    yield (
        "orchestration_delivery",
        fleet.Delivery.objects.create(
            subscription=target, event_id=1, type="x", payload={}, state="dead", next_at=timezone.now()
        ),
    )
    yield "orchestration_event", fleet.Event.objects.create(type="x", at=timezone.now())
    yield "orchestration_alias", fleet.Alias.objects.create(name=name, model="x")
    yield "orchestration_modelclass", fleet.ModelClass.objects.create(name=name)
    server = fleet.Server.objects.create(
        server_id=name, hostname="127.0.0.1", port=9, state="disabled", api_key=hidden()
    )
    fleet.ServedModel.objects.create(server=server, name=name)
    yield "orchestration_server", server


def of_people(person: Any) -> Iterator[tuple[str, Any]]:
    """The same of how people sign in."""
    from allauth.mfa.models import Authenticator
    from allauth.socialaccount.models import SocialAccount
    from django.contrib.auth.models import Group

    from apps.gateway.models import Assignment

    yield "auth_user", person
    yield "gateway_assignment", Assignment.objects.create(user=person, servers=["some"])
    yield "auth_group", Group.objects.create(name=f"row-{secrets.token_hex(4)}")
    yield "mfa_authenticator", Authenticator.objects.create(user=person, type="totp", data={"secret": hidden()})
    account = SocialAccount.objects.create(user=person, provider="main", uid=person.username)
    SocialAccount.objects.filter(pk=account.pk).update(extra_data={"token": hidden()})
    account.refresh_from_db()
    yield "socialaccount_socialaccount", account


def of_requests() -> Iterator[tuple[str, Any]]:
    """The same of what requests leave and cost."""
    from apps.audit.models import Record
    from apps.gateway.models import Price

    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "request_bytes", "answer_bytes", "total_ms"), 0)
    record = Record(request_id=secrets.token_hex(8), at=timezone.now(), status=200, stream=False, **counts)
    [kept] = Record.objects.bulk_create([record])
    yield "audit_record", kept
    yield "gateway_price", Price.objects.create(model=f"row-{secrets.token_hex(4)}")


@pytest.fixture
def rows(own: Belongings) -> Iterator[Mapping[str, Any]]:
    """One of each kind that the console shows."""
    from django.contrib.auth.models import User

    with ExitStack() as stack:
        person = User.objects.create_user(f"p-{secrets.token_hex(4)}", password=hidden())
        made = dict([*of_the_fleet(), *of_people(person), *of_requests()])
        for row in reversed(made.values()):
            stack.callback(type(row).objects.filter(pk=row.pk).delete)
        yield made | {f"gateway_{name}": own[name] for name in ("team", "key", "budget", "spend")}


def words(row: Any) -> list[str]:
    """What is secret of a row, as a page would write it."""
    held = [getattr(row, name) for name in SECRETS.get(f"{row._meta.app_label}_{row._meta.model_name}", ())]
    told = [next(iter(value.values())) if isinstance(value, dict) else value for value in held if value]
    return [bytes(value).hex() if isinstance(value, bytes | memoryview) else value for value in told]


def test_each_row_is_shown_to_who_may_see_it_without_its_secrets(
    visitor: Visitor, role: str, rows: Mapping[str, Any]
) -> None:
    assert rows.keys() == PAGES.keys()
    wrong: dict[str, Any] = {}
    for model, row in rows.items():
        base = f"/admin/{model.replace('_', '/')}/"
        for path in (base, f"{base}{row.pk}/change/", f"{base}{row.pk}/history/"):
            answer = visitor.get(path)
            told = [word for word in words(row) if word in answer.text]
            if answer.status_code != (200 if role in PAGES[model].see else answer.status_code) or told:
                wrong[path] = answer.status_code, told
    assert wrong == {}


def test_a_server_s_key_is_typed_in_by_who_may_change_it_alone(
    visitor: Visitor, role: str, rows: Mapping[str, Any]
) -> None:
    if role in SEEING:
        shown = visitor.get(f"/admin/orchestration/server/{rows['orchestration_server'].pk}/change/").text
        for field in ("field-api_key", "field-remove_key"):
            assert (field in shown) is (role in PAGES["orchestration_server"].change)
        assert "field-hostname" in shown


def test_no_filter_tells_a_secret(visitor: Visitor, role: str, rows: Mapping[str, Any]) -> None:
    """Neither of the list itself nor of one whose rows lead to it."""
    answered = {}
    asked = [(model, column) for model, columns in SECRETS.items() for column in columns]
    asked += [
        ("gateway_budget", "key__digest"),
        ("orchestration_delivery", "subscription__salt"),
        ("orchestration_receivedwebhook", "hook__salt"),
    ]
    for model, column in asked:
        for filtering in ("", "__startswith", "__isnull"):
            path = f"/admin/{model.replace('_', '/')}/?{column}{filtering}=1"
            status = visitor.get(path).status_code
            if status != (400 if role in PAGES[model].see else 403):
                answered[path] = status
    assert answered == {}


def test_a_filter_of_what_is_shown_goes_on(visitor: Visitor, role: str, rows: Mapping[str, Any]) -> None:
    if role in SEEING:
        name = rows["orchestration_server"].server_id
        for query, is_there in ((f"server_id__startswith={name}", True), ("state__exact=pending", False)):
            answer = visitor.get(f"/admin/orchestration/server/?{query}")
            assert (answer.status_code, f">{name}<" in answer.text) == (200, is_there)
