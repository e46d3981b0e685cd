"""Budgets, prices and what was spent, in the console."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from apps.gateway.models import Budget, Key, Price, Spend
from tests.gateway.spending.holder import id_of
from tests.instance import Instance

BUDGETS, PRICES, SPEND = "/admin/gateway/budget/", "/admin/gateway/price/", "/admin/gateway/spend/"


@pytest.fixture
def browser(citadel: Instance) -> Iterator[Browser]:
    user = get_user_model().objects.create_superuser(f"admin-{secrets.token_hex(4)}", password="p")
    browser = Browser(headers={"host": "localhost"})
    browser.force_login(user)
    yield browser
    user.delete()


@pytest.fixture
def key(citadel: Instance, team: str) -> Key:
    return Key.objects.select_related("team").get(key_id=id_of(citadel.key(team)))


def test_budgets_are_made_changed_and_shown_with_what_was_spent(browser: Browser, key: Key) -> None:
    form = {"team": key.team.pk, "period": "month", "tokens": "1000", "money": "12.000000005"}
    assert browser.post(f"{BUDGETS}add/", form).status_code == 302
    [made] = Budget.objects.filter(team=key.team)
    assert (made.tokens, made.money) == (1000, Decimal("12.000000005"))
    Spend.objects.create(
        holder=f"team:{key.team}", day=datetime.now(UTC).date(), requests=1, tokens=7, money=Decimal("0.1")
    )
    for page in (f"{BUDGETS}?q={key.team}", f"{BUDGETS}{made.pk}/change/"):
        shown = browser.get(page).content.decode()
        assert "7 tokens, 0.1" in shown
    changed = {"tokens": "", "money": "0", "period": "day", "key": key.pk, "spent": "0"}
    assert browser.post(f"{BUDGETS}{made.pk}/change/", changed).status_code == 302
    made.refresh_from_db()
    assert (made.tokens, made.money, made.period, made.key) == (None, Decimal(0), "month", None)
    assert browser.post(f"{BUDGETS}{made.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Budget.objects.filter(team=key.team).exists()


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, "of a team or of a key"),
        ({"team": True, "key": True}, "of a team or of a key"),
        ({"team": True, "tokens": ""}, "bounds tokens, money or both"),
        ({"team": True, "tokens": "-1"}, "greater than or equal to 0"),
        ({"team": True, "tokens": str(10**15 + 1)}, "less than or equal to"),
        ({"team": True, "money": "NaN"}, "Enter a number"),
        ({"team": True, "money": "-1"}, "greater than or equal to 0"),
        ({"team": True, "money": "9000000.1"}, "less than or equal to"),
        ({"team": True, "money": "0.0000000001"}, "no more than 9 decimal places"),
        ({"team": True, "period": "year"}, "Select a valid choice"),
    ],
)
def test_a_bad_budget_is_refused_in_words(browser: Browser, key: Key, form: dict[str, object], words: str) -> None:
    holders = {"team": key.team.pk, "key": key.pk}
    told = {"period": "day", "tokens": "5", **form}
    told = {name: holders[name] if value is True else value for name, value in told.items()}
    answer = browser.post(f"{BUDGETS}add/", told)
    assert answer.status_code == 200
    assert words in answer.content.decode()
    assert not Budget.objects.filter(team=key.team).exists()


def test_a_second_budget_for_the_period_is_refused(browser: Browser, key: Key) -> None:
    form = {"key": key.pk, "period": "day", "tokens": "5"}
    assert browser.post(f"{BUDGETS}add/", form).status_code == 302
    answer = browser.post(f"{BUDGETS}add/", form)
    assert answer.status_code == 200
    assert "already exists" in answer.content.decode()


def test_a_price_is_of_a_model_by_either_name(browser: Browser) -> None:
    name = f"priced-{secrets.token_hex(4)}"
    form = {"model": f"{name}:latest", "prompt": "1.5", "completion": "0", "server_second": "0"}
    try:
        assert browser.post(f"{PRICES}add/", form).status_code == 302
        assert Price.objects.get(model=name).prompt == Decimal("1.5")
        answer = browser.post(f"{PRICES}add/", form)
        assert "already exists" in answer.content.decode()
    finally:
        Price.objects.filter(model__startswith=name).delete()
    answer = browser.post(f"{PRICES}add/", {**form, "model": ":latest"})
    assert "A tag alone is no name" in answer.content.decode()


def test_what_was_spent_is_to_read_alone(browser: Browser, key: Key) -> None:
    row = Spend.objects.create(
        holder=key.key_id, day=datetime.now(UTC).date(), requests=1, tokens=123456, money=Decimal("0.5")
    )
    assert "123456" in browser.get(f"{SPEND}?q={key.key_id}").content.decode()
    for page in (f"{SPEND}add/", f"{SPEND}{row.pk}/delete/"):
        assert browser.get(page).status_code == 403
    assert browser.post(f"{SPEND}{row.pk}/change/", {"tokens": "0"}).status_code == 403
    row.refresh_from_db()
    assert row.tokens == 123456


def test_the_list_asks_the_database_once_for_all_that_was_spent(browser: Browser, citadel: Instance, key: Key) -> None:
    counts = []
    for _ in range(2):
        another = Key.objects.get(key_id=id_of(citadel.key(key.team.slug)))
        for period in Budget.Period.values:
            Budget.objects.create(key=another, period=period, tokens=1)
        with CaptureQueriesContext(connection) as queries:
            browser.get(f"{BUDGETS}?q={key.team}")
        counts.append(len(queries))
    assert counts[0] == counts[1]
