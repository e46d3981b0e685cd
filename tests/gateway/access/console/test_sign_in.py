"""Name, password and second factor: what opens the console, and that nothing else does."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx
import pytest

from apps.gateway.access.console import lockout
from tests.gateway.access.console.visitor import CODE, FACTORS, LOGIN, PASSWORD, Visitor, account, code, error
from tests.instance import Instance
from tests.orchestration.socket import refused

PAGES = ("/admin/", "/admin/gateway/key/", "/admin/auth/user/add/", "/admin/password_change/", "/admin/jsi18n/")
WRONG = "No account of this console has that name and password."


async def test_a_password_alone_is_good_for_setting_up_a_second_factor_alone(
    guarded: Instance, visitor: Visitor, name: str
) -> None:
    assert visitor.sign_in(name).headers["location"] == "/admin/"
    for page in PAGES[:-1]:
        assert visitor.get(page).headers["location"] == FACTORS, page
    assert (await refused(guarded, {"cookie": visitor.cookie, "origin": guarded.url}))[0] == 401
    assert "Set one up to go on" in visitor.get(FACTORS).text
    _, codes = visitor.set_up()
    assert len(set(codes)) == 10
    assert not re.findall(r"\b\d{10}\b", visitor.get(f"{FACTORS}recovery-codes/").text), "shown once"
    assert visitor.is_in()


def test_the_second_factor_is_asked_for_and_a_code_is_good_once(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    secret, codes = visitor.set_up()
    new = code(secret, 1)
    tries = ((visitor.used, False), (new, True), (new, False), (codes[0], True), (codes[0], False), ("000000", False))
    for given, opens in tries:
        with Visitor(guarded) as other:
            assert other.sign_in(name).headers["location"] == CODE
            assert not other.is_in()
            answer = other.send_form(CODE, code=given)
            assert (answer.status_code == 302, other.is_in()) == (opens, opens), given
            assert opens or error(answer) == "Incorrect code."


def test_a_code_that_many_workers_get_at_once_opens_once(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    secret, _ = visitor.set_up()
    others = [Visitor(guarded) for _ in range(4)]
    for other in others:
        other.sign_in(name)
    given = code(secret, 1)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda other: other.send_form(CODE, code=given), others))
    assert sum(answer.status_code == 302 for answer in answers) == 1
    assert sum(other.is_in() for other in others) == 1


def test_codes_can_not_be_guessed(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    secret, _ = visitor.set_up()
    with Visitor(guarded) as other:
        other.sign_in(name)
        said = [error(other.send_form(CODE, code=f"{number:06}")) for number in range(7)]
        assert said == ["Incorrect code."] * 5 + ["Too many wrong codes. Try again in five minutes."] * 2
        assert error(other.send_form(CODE, code=code(secret, 1))) == said[-1]


def test_there_is_no_other_form_and_nobody_signs_up(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    visitor.set_up()
    with Visitor(guarded) as stranger:
        for page in PAGES:
            assert stranger.get(page).headers["location"].startswith(f"{LOGIN}?next="), page
        for page in ("signup", "accounts/login", "admin/signup", "admin/password/reset", "admin/socialaccount/signup"):
            assert stranger.get(f"/{page}/").status_code in {302, 404}
            assert not stranger.send_form(f"/{page}/", username=name, password=PASSWORD).is_success
        assert stranger.send_form("/admin/", username=name, password=PASSWORD, this_is_the_login_form="1").is_redirect
        assert not stranger.is_in()


def test_a_session_from_before_the_second_factor_is_over(guarded: Instance, visitor: Visitor, name: str) -> None:
    with Visitor(guarded) as earlier:
        earlier.sign_in(name)
        visitor.sign_in(name)
        visitor.set_up()
        assert earlier.get(FACTORS).headers["location"].startswith(LOGIN)
        earlier.send_form("/admin/confirm/", password=PASSWORD)
        assert not earlier.is_in()


def test_the_session_is_another_one_after_each_step(visitor: Visitor, guarded: Instance, name: str) -> None:
    visitor.sign_in(name)
    before = visitor.cookies["sessionid"]
    secret, _ = visitor.set_up()
    assert visitor.cookies["sessionid"] != before, "this one may all"
    with Visitor(guarded) as other:
        other.sign_in(name)
        between = other.cookies["sessionid"]
        answer = other.send_form(CODE, code=code(secret, 1))
        assert other.cookies["sessionid"] != between
        [cookie] = [one for one in answer.headers.get_list("set-cookie") if one.startswith("sessionid=")]
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
        other.cookies.set("sessionid", between, domain="127.0.0.1")
        assert not other.is_in()


@pytest.mark.parametrize("where", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_who_has_signed_in_is_led_nowhere_else(visitor: Visitor, name: str, where: str) -> None:
    assert visitor.sign_in(name, next=where).headers["location"] == "/admin/"


def test_nobody_learns_which_names_there_are(guarded: Instance, name: str) -> None:
    with account(is_staff=False) as outsider, account("admin", is_active=False) as former:
        tries = ((name, "wrong"), ("nobody-here", PASSWORD), (outsider.username, PASSWORD), (former.username, PASSWORD))
        said = set()
        for who, password in tries:
            with Visitor(guarded) as stranger:
                answer = stranger.sign_in(who, password)
                text = re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", answer.text).replace(who, "NAME")
                said.add((answer.status_code, error(answer), text, "citadel_device" in stranger.cookies))
    [(status, told, _, known)] = said
    assert (status, told, known) == (200, WRONG, False)


def test_nor_by_how_long_it_takes(guarded: Instance, name: str) -> None:
    took: dict[str, list[float]] = {name: [], "nobody-here": []}
    for _ in range(5):
        for who, times in took.items():
            with Visitor(guarded) as stranger:
                stranger.get(LOGIN)
                before = time.perf_counter()
                stranger.sign_in(who, "wrong")
                times.append(time.perf_counter() - before)
    there, absent = (median(times) for times in took.values())
    assert 0.5 < there / absent < 2


def test_guessing_locks_an_account_for_strangers_not_for_who_has_been_there(
    guarded: Instance, visitor: Visitor, name: str
) -> None:
    visitor.sign_in(name)  # from now on this browser is known
    visitor.send_form("/admin/logout/")
    said = []
    for _ in range(lockout.OF_ACCOUNT + 2):
        with Visitor(guarded) as stranger:
            said.append(error(stranger.sign_in(name.upper(), "wrong")))
    assert said[: lockout.OF_ACCOUNT] == [WRONG] * lockout.OF_ACCOUNT
    assert all(re.fullmatch(r"Too many attempts\. Try again in (9|10) minutes\.", one) for one in said[-2:])
    with Visitor(guarded) as stranger:
        assert error(stranger.sign_in(name)).startswith("Too many attempts")
    assert visitor.sign_in(name).status_code == 302
    with Visitor(guarded) as other, account("admin") as somebody:
        assert other.sign_in(somebody.username).status_code == 302


def test_a_name_that_nobody_has_is_locked_like_one(guarded: Instance) -> None:
    said = []
    for _ in range(lockout.OF_ACCOUNT + 1):
        with Visitor(guarded) as stranger:
            said.append(error(stranger.sign_in("somebody-else", "wrong")))
    assert said[-2] == WRONG
    assert said[-1].startswith("Too many attempts")


def test_a_known_browser_can_not_guess_either(visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    visitor.send_form("/admin/logout/")
    said = [error(visitor.sign_in(name, "wrong")) for _ in range(lockout.OF_DEVICE + 1)]
    assert said[-2] == WRONG
    assert said[-1].startswith("Too many attempts")


def test_many_guesses_at_once_are_no_way_round(guarded: Instance, name: str) -> None:
    strangers = [Visitor(guarded) for _ in range(40)]
    for stranger in strangers:
        stranger.get(LOGIN)
    with ThreadPoolExecutor(40) as threads:
        said = list(threads.map(lambda stranger: error(stranger.sign_in(name, "wrong")), strangers))
    assert said.count(WRONG) == lockout.OF_ACCOUNT
    assert sum(one.startswith("Too many attempts") for one in said) == 30


def test_an_address_is_locked_and_then_locks_no_accounts(guarded: Instance, name: str) -> None:
    with Visitor(guarded) as stranger:
        said = [error(stranger.sign_in(f"n-{number}", "wrong")) for number in range(lockout.OF_ADDRESS + 1)]
        assert said[-2] == WRONG
        assert said[-1].startswith("Too many attempts")
        for _ in range(lockout.OF_ACCOUNT + 1):
            stranger.sign_in(name, "wrong")
        wrong_key = stranger.get("/v1/models", headers={"authorization": "Bearer nonsense"})
        assert (wrong_key.status_code, wrong_key.json()["error"]["code"]) == (401, "invalid_api_key")
    with Visitor(guarded) as other:
        assert other.sign_in(name).status_code == 302


def test_without_redis_nobody_signs_in_and_all_are_told(guarded: Instance, visitor: Visitor, name: str) -> None:
    import redis

    visitor.sign_in(name)
    visitor.set_up()
    with redis.Redis.from_url(guarded.redis_url, socket_timeout=20) as store, Visitor(guarded) as other:
        other.get(LOGIN)
        store.client_pause(8_000, all=True)
        answer = other.sign_in(name)
        assert (answer.status_code, "Try again in a minute" in error(answer)) == (503, True)
        assert visitor.is_in()
        store.ping()  # until it goes on


@pytest.mark.parametrize("junk", ["\0", "x" * 100_000, "' OR 1=1 --", "é\u202e\U0001f600"])
def test_junk_is_refused_as_anything_else(guarded: Instance, junk: str) -> None:
    with Visitor(guarded) as stranger:
        for fields in ({"name": junk, "password": "wrong"}, {"name": "nobody-here-1", "password": junk}):
            answer = stranger.sign_in(**fields)
            assert (answer.status_code, bool(error(answer))) == (200, True)


JUNK = [
    "x",
    "[]",
    "1",
    "null",
    "{}",
    '{"response": []}',
    '{"response": {"userHandle": 1}}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"clientDataJSON": "e30",'
    ' "attestationObject": "AA"}}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"userHandle": "MQ", "clientDataJSON": "e30",'
    ' "authenticatorData": "AA", "signature": "AA"}}',
]


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_passkey_is_refused(guarded: Instance, visitor: Visitor, name: str, junk: str) -> None:
    visitor.sign_in(name)
    visitor.send_form(f"/admin/confirm/?next={FACTORS}webauthn/add/", password=PASSWORD)
    visitor.get(f"{FACTORS}webauthn/add/")
    added = visitor.send_form(f"{FACTORS}webauthn/add/", name="x", credential=junk)
    assert added.status_code in {200, 400}
    assert not visitor.is_in()
    visitor.set_up()
    with Visitor(guarded) as stranger:
        assert stranger.get(f"{FACTORS}webauthn/login/", headers={"accept": "application/json"}).json()
        assert stranger.send_form(f"{FACTORS}webauthn/login/", credential=junk).headers["location"] == LOGIN
        stranger.sign_in(name)
        assert stranger.send_form(CODE, credential=junk).status_code == 200
        assert not stranger.is_in()


def test_a_session_stands_on_a_second_factor_that_is_still_there(
    guarded: Instance, visitor: Visitor, name: str
) -> None:
    from django.core.management import call_command

    visitor.sign_in(name)
    visitor.set_up()
    assert visitor.is_in()
    call_command("resetfactor", name)
    assert visitor.get("/admin/").headers["location"].startswith(LOGIN)


NEW = {"new_password1": "another one that is long", "new_password2": "another one that is long"}


def test_an_open_session_is_no_place_to_guess_its_password(visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    visitor.set_up()
    tried = ["wrong"] * lockout.OF_DEVICE + [PASSWORD]
    said = [visitor.send_form("/admin/password_change/", old_password=old, **NEW).text for old in tried]
    assert all("is not the password" in one for one in said[:-1])
    assert "Too many attempts" in said[-1]


def test_people_change_their_passwords(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    visitor.set_up()
    assert visitor.send_form("/admin/password_change/", old_password=PASSWORD, **NEW).is_redirect
    assert "Password change" in visitor.get("/admin/password_change/done/").text
    with Visitor(guarded) as other:
        assert error(other.sign_in(name)) == WRONG
        assert other.sign_in(name, NEW["new_password1"]).headers["location"] == CODE


def test_a_lost_second_factor_is_taken_away_by_an_administrator(guarded: Instance, visitor: Visitor, name: str) -> None:
    with account("admin") as other, Visitor(guarded) as lost:
        lost.sign_in(other.username)
        secret, codes = lost.set_up()
        visitor.sign_in(name)
        visitor.set_up()
        listed = visitor.get("/admin/mfa/authenticator/").text
        rows = re.findall(r"/admin/mfa/authenticator/(\d+)/change/\">" + other.username, listed)
        assert len(rows) == 2
        assert secret not in listed + visitor.get(f"/admin/mfa/authenticator/{rows[0]}/change/").text
        app = other.authenticator_set.get(type="totp").pk  # with which the codes go
        visitor.send_form("/admin/mfa/authenticator/", action="delete_selected", _selected_action=[app], post="yes")
        with Visitor(guarded) as again:
            assert again.sign_in(other.username).headers["location"] == "/admin/"
            assert again.get("/admin/").headers["location"] == FACTORS
            again.set_up()
        with Visitor(guarded) as finder:
            finder.sign_in(other.username)
            assert error(finder.send_form(CODE, code=codes[0])) == "Incorrect code."


def test_pages_run_nothing_of_their_own(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    seen = [visitor.get(LOGIN), visitor.get(FACTORS)]
    visitor.set_up()
    inside = ("", "gateway/key/add/", "gateway/team/add/", "orchestration/server/add/", "auth/user/", "auth/group/add/")
    seen += [visitor.get(f"/admin/{page}") for page in (*inside, "second-factor/webauthn/add/", "nowhere/")]
    with Visitor(guarded) as stranger:
        seen += [stranger.get(LOGIN), stranger.sign_in("x", "y"), stranger.get("/static/admin/css/base.css")]
    for page in seen:
        assert {"script-src 'self'", "default-src 'none'", "frame-ancestors 'none'"} <= directives(page), page.url
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.url.path.startswith("/static/") or page.headers["x-frame-options"] == "DENY"
        if page.headers["content-type"].startswith("text/html"):
            assert not re.search(r"<script(?![^>]*(src=|application/json))|\son\w+=\"|\sstyle=|javascript:", page.text)


def directives(page: httpx.Response) -> set[str]:
    return set(page.headers["content-security-policy"].split("; "))
