"""People of an OpenID provider: who comes in, as what, and that nobody becomes somebody else."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.gateway.access.console.provider import Provider
from tests.gateway.access.console.visitor import LOGIN, Visitor, account, error
from tests.instance import Instance

START = "/admin/oidc/main/login/"


def come(visitor: Visitor, start: str = START) -> httpx.Response:
    """What the console says when the provider has sent somebody back."""
    asked = visitor.send_form(f"{start}?process=login")
    assert asked.status_code == 302, asked.text
    sent_back = httpx.get(asked.headers["location"])
    return visitor.get(sent_back.headers["location"])


def person(**more: Any) -> dict[str, Any]:
    return {"sub": secrets.token_hex(4), "preferred_username": f"o-{secrets.token_hex(4)}", **more}


@pytest.fixture(autouse=True)
def _clean(guarded: Instance) -> Iterator[None]:
    from django.contrib.auth.models import User

    there = set(User.objects.values_list("pk", flat=True))
    yield
    User.objects.exclude(pk__in=there).delete()


def accounts(name: str) -> list[Any]:
    from django.contrib.auth.models import User

    return list(User.objects.filter(username=name))


def test_who_has_a_role_comes_in_with_it(visitor: Visitor, provider: Provider) -> None:
    who = person(groups=["staff", "it-operators"])
    provider.say(who)
    assert "Sign in with Main" in visitor.get(LOGIN).text
    assert come(visitor).headers["location"] == "/admin/"
    assert visitor.is_in(), "the second factor is the provider's matter"
    [made] = accounts(who["preferred_username"])
    assert (made.is_staff, made.is_superuser, made.has_usable_password()) == (True, False, False)
    assert [group.name for group in made.groups.all()] == ["operator"]


def test_the_role_is_the_one_of_today_and_may_be_none(guarded: Instance, visitor: Visitor, provider: Provider) -> None:
    who = person(groups="it-operators")
    for groups, role in (("it-operators", "operator"), (["it-audit"], "auditor"), ([], None), ("it-audit", "auditor")):
        provider.say({**who, "groups": groups})
        answer = come(visitor)
        [made] = accounts(who["preferred_username"])
        assert [group.name for group in made.groups.all()] == ([role] if role else [])
        assert (made.is_staff, visitor.is_in()) == (bool(role), bool(role))
        assert role or (answer.status_code, error(answer)[:12]) == (403, "You are know")


def test_who_has_none_gets_no_account(visitor: Visitor, provider: Provider) -> None:
    who = person(groups=["it-oper", "x"], email="somebody@example.org")
    provider.say(who)
    answer = come(visitor)
    assert (answer.status_code, visitor.is_in()) == (403, False)
    assert not accounts(who["preferred_username"])


def test_nobody_becomes_who_has_the_same_name_or_address(visitor: Visitor, provider: Provider) -> None:
    with account("admin", email="boss@example.org", is_superuser=True) as boss:
        who = person(groups="it-audit", email=boss.email, email_verified=True)
        provider.say({**who, "preferred_username": boss.username})
        assert come(visitor).headers["location"] == "/admin/"
        assert visitor.get("/admin/auth/user/").status_code == 403
        boss.refresh_from_db()
        assert boss.check_password("correct horse battery staple")
        assert not boss.socialaccount_set.exists()


def test_nobody_adds_a_provider_to_an_account_that_is_signed_in(visitor: Visitor, provider: Provider) -> None:
    provider.say(person(groups="it-audit"))
    asked = visitor.send_form(f"{START}?process=connect")
    answer = visitor.get(httpx.get(asked.headers["location"]).headers["location"])
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"exp": 1},
        {"sub": None},
        {"sub": ""},
        {"nonce": "another"},
        {"nonce": None},
        {"azp": "another"},
        {"exp": None},
        {"beside": {"sub": "another", "groups": "it-operators"}},
    ],
    ids=str,
)
def test_words_that_do_not_fit_together_open_nothing(
    visitor: Visitor, provider: Provider, wrong: dict[str, Any]
) -> None:
    who = person(groups="it-operators")
    provider.say(who, **wrong)
    answer = come(visitor)
    assert answer.status_code in {401, 403}
    assert not visitor.is_in()
    assert not accounts(who["preferred_username"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"beside": {"groups": "it-operators"}},
        {"beside": ["x"]},
        {"sub": "a\0b", "beside": {}},
        {"sub": "x" * 192, "beside": {}},
    ],
    ids=str,
)
def test_answers_without_a_shape_are_told_as_that(visitor: Visitor, provider: Provider, wrong: dict[str, Any]) -> None:
    provider.say(person(groups="it-operators"), **wrong)
    answer = come(visitor)
    assert (answer.status_code, "can&#x27;t be understood" in error(answer), visitor.is_in()) == (503, True, False)


STRICT = "/admin/oidc/strict/login/"


@pytest.mark.parametrize(
    ("less", "opens"),
    [
        ({}, True),
        ({"acr": "urn:three", "amr": ["hwk"]}, True),
        ({"acr": None}, False),
        ({"acr": "urn:one"}, False),
        ({"acr": ["urn:two"]}, False),
        ({"amr": None}, False),
        ({"amr": ["pwd"]}, False),
        ({"amr": "otp"}, False),
        ({"amr": [["otp"]]}, False),
        ({"auth_time": None}, False),
        ({"auth_time": 1}, False),
        ({"auth_time": True}, False),
        ({"auth_time": "now"}, False),
    ],
    ids=str,
)
def test_who_has_not_signed_in_as_strictly_as_is_asked_for_stays_out(
    visitor: Visitor, provider: Provider, less: dict[str, Any], opens: bool
) -> None:
    """By the ID token alone: what is said beside it is not signed for this."""
    who = person(groups="it-audit")
    said = {"acr": "urn:two", "amr": ["pwd", "otp"], "auth_time": int(time.time()) - 200}
    provider.say(who, {**who, **said}, **{**said, **less})
    answer = come(visitor, STRICT)
    assert (answer.status_code, visitor.is_in()) == ((302, True) if opens else (403, False))
    assert opens or "as strictly, or as lately" in error(answer)
    assert bool(accounts(who["preferred_username"])) == opens


def test_what_is_wanted_is_asked_for(visitor: Visitor) -> None:
    asked = parse_qs(urlsplit(visitor.send_form(f"{STRICT}?process=login").headers["location"]).query)
    assert (asked["acr_values"], asked["max_age"]) == (["urn:two urn:three"], ["300"])
    usual = parse_qs(urlsplit(visitor.send_form(f"{START}?process=login").headers["location"]).query)
    assert not {"acr_values", "max_age"} & set(usual)


def test_names_that_are_too_long_are_no_obstacle(visitor: Visitor, provider: Provider) -> None:
    from django.contrib.auth.models import User

    long = {
        "preferred_username": "x" * 200,
        "given_name": "y" * 200,
        "family_name": "z" * 200,
        "email": f"{'e' * 300}@x.example",
    }
    provider.say({**person(groups="it-audit"), **long})
    assert come(visitor).headers["location"] == "/admin/"
    assert User.objects.filter(socialaccount__provider="main").exists()


def test_a_provider_that_is_away_is_told_as_that(visitor: Visitor) -> None:
    answer = visitor.send_form("/admin/oidc/away/login/?process=login")
    assert (answer.status_code, "can&#x27;t be reached" in error(answer)) == (503, True)


def test_an_answer_that_nobody_asked_for_opens_nothing(guarded: Instance, visitor: Visitor, provider: Provider) -> None:
    provider.say(person(groups="it-operators"))
    for query in ("", "?code=x", "?code=x&state=y", "?error=access_denied", "?error=x&state=y"):
        assert visitor.get(f"{START}callback/{query}").status_code in {302, 401}
    asked = visitor.send_form(f"{START}?process=login")
    back = httpx.get(asked.headers["location"]).headers["location"]
    with Visitor(guarded) as other:
        assert other.get(back).status_code == 401, "another browser's"
    assert visitor.get(back).headers["location"] == "/admin/"
    assert visitor.get(back).status_code == 401, "twice"


def test_what_is_asked_says_no_more_than_it_must(guarded: Instance, visitor: Visitor) -> None:
    asked = parse_qs(urlsplit(visitor.send_form(f"{START}?process=login").headers["location"]).query)
    assert sorted(asked["scope"][0].split()) == ["email", "openid", "profile"]
    assert asked["redirect_uri"] == [f"{guarded.url}{START}callback/"]
    assert visitor.get("/admin/oidc/another/login/").status_code == 404


def test_what_is_asked_is_nobodys_choice(guarded: Instance, visitor: Visitor) -> None:
    more = urlencode({"scope": "everything", "auth_params": "redirect_uri=https://evil.example/&prompt=none"})
    asked, usual = (
        parse_qs(urlsplit(visitor.send_form(f"{START}?{query}").headers["location"]).query)
        for query in (f"process=login&{more}", "process=login")
    )
    assert set(asked["scope"][0].split()) == set(usual["scope"][0].split())
    assert asked["redirect_uri"] == usual["redirect_uri"]
    assert set(asked) == set(usual)
    assert asked["nonce"] != usual["nonce"]


def test_of_what_is_said_the_subject_alone_is_kept(visitor: Visitor, provider: Provider) -> None:
    from allauth.socialaccount.models import SocialAccount

    who = person(groups="it-audit", email="somebody@example.org", email_verified=True)
    provider.say(who)
    for _ in range(2):
        assert come(visitor).headers["location"] == "/admin/"
        assert SocialAccount.objects.get(uid=who["sub"]).extra_data == {"sub": who["sub"]}


def test_who_comes_twice_at_once_for_the_first_time_has_one_account(guarded: Instance, provider: Provider) -> None:
    from allauth.socialaccount.models import SocialAccount
    from django.contrib.auth.models import User

    for _ in range(3):
        provider.say(person(groups="it-audit"))
        tabs = [Visitor(guarded) for _ in range(4)]
        backs = []
        for tab in tabs:
            asked = tab.send_form(f"{START}?process=login").headers["location"]
            backs.append((tab, httpx.get(asked).headers["location"]))
        with ThreadPoolExecutor(len(tabs)) as threads:
            said = list(threads.map(lambda one: one[0].get(one[1]), backs))
        assert {answer.status_code for answer in said} <= {302, 503}, [error(answer) for answer in said]
        assert any(tab.is_in() for tab in tabs)
        assert len(accounts(provider.person["preferred_username"])) == 1
        assert not User.objects.filter(socialaccount=None, username__startswith=provider.person["preferred_username"])
        assert SocialAccount.objects.filter(uid=provider.person["sub"]).count() == 1
