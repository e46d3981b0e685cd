"""What the security log hears of the console: who comes in, who does not, and what people change of their own."""

import re
import secrets

import pytest

from apps.gateway.access.console import lockout
from tests.gateway.access.console.provider import Provider
from tests.gateway.access.console.test_providers import come, person
from tests.gateway.access.console.test_sessions import open_for
from tests.gateway.access.console.test_sign_in import JUNK
from tests.gateway.access.console.visitor import CODE, FACTORS, LOGIN, PASSWORD, Visitor, account, code
from tests.instance import Instance
from tests.security_lines import Line, told

NEW = "another one that is long"


def last(citadel: Instance, visitor: Visitor, event: str) -> Line:
    """The last line of that event about who is at a visitor's address."""
    return told(citadel, event=event, address=visitor.address)[-1]


def test_who_signs_in_by_what_and_leaves(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    assert last(guarded, visitor, "signed_in")["by"] == "password"
    secret, _ = visitor.set_up()
    changes = {(line["kind"], line["change"]) for line in told(guarded, event="second_factor_changed", account=name)}
    assert changes == {("totp", "added"), ("recovery_codes", "added")}
    with Visitor(guarded) as other:
        other.sign_in(name)
        assert not told(guarded, within=0.3, event="signed_in", address=other.address), "half of it"
        other.send_form(CODE, code=code(secret, 1))
        line = last(guarded, other, "signed_in")
        assert (line["account"], line["by"], line["level"]) == (name, "password, totp", "info")
        other.send_form("/admin/logout/")
        ended = last(guarded, other, "session_ended")
        assert (ended["account"], ended["reason"]) == (name, "signed out")


def test_who_does_not_get_in(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name, "wrong one of theirs")
    failed = last(guarded, visitor, "sign_in_failed")
    assert (failed["account"], failed["by"], failed["level"]) == (name, "password", "warning")
    with Visitor(guarded) as lost:
        typed = f"a-password-{secrets.token_hex(8)}"
        lost.sign_in(typed, "x")
        line = last(guarded, lost, "sign_in_failed")
        assert (line["known"], "account" in line) == (False, False)
    for log in guarded.home.glob("logs/*.log"):
        assert typed not in log.read_text(), "what looks like a name may be a password"
        assert "wrong one of theirs" not in log.read_text()


def test_wrong_codes_are_told_and_when_there_are_no_more(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    visitor.set_up()
    with Visitor(guarded) as other:
        other.sign_in(name)
        for number in range(6):
            other.send_form(CODE, code=f"{number:06}")
        failed, locked = (last(guarded, other, event) for event in ("sign_in_failed", "sign_in_locked"))
        assert {(line["account"], line["by"]) for line in (failed, locked)} == {(name, "second factor")}


def test_a_lock_is_told_once(guarded: Instance) -> None:
    with Visitor(guarded) as stranger:
        for _ in range(lockout.OF_ACCOUNT + 3):
            stranger.sign_in(f"nobody-{stranger.address}", "wrong")
        assert len(told(guarded, event="sign_in_locked", address=stranger.address)) == 1


def test_what_a_provider_says_no_to(guarded: Instance, visitor: Visitor, provider: Provider) -> None:
    provider.say(person(groups=[]))
    assert come(visitor).status_code == 403
    line = last(guarded, visitor, "sign_in_failed")
    assert (line["by"], line["reason"][:13]) == ("main", "You are known")
    provider.say(person(groups="it-audit"))
    assert come(visitor).status_code == 302
    assert last(guarded, visitor, "signed_in")["by"] == "main"


def test_a_password_that_is_changed(guarded: Instance, visitor: Visitor, name: str) -> None:
    visitor.sign_in(name)
    visitor.set_up()
    form = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    visitor.send_form("/admin/password_change/", **form)
    assert last(guarded, visitor, "password_changed")["account"] == name


def test_who_may_not(guarded: Instance, visitor: Visitor) -> None:
    from apps.gateway.models import Team

    team = Team.objects.create(slug=f"t-{secrets.token_hex(4)}", name="x")
    with account("developer") as made:
        open_for(visitor, made)
        for path, status in (("/admin/orchestration/server/", 403), (f"/admin/gateway/team/{team.pk}/change/", 404)):
            assert visitor.get(path).status_code == status
            line = last(guarded, visitor, "access_denied")
            assert (line["account"], line["path"]) == (made.username, path)
    team.delete()


def test_a_form_of_another_page(guarded: Instance, visitor: Visitor) -> None:
    visitor.get(LOGIN)
    assert visitor.post(LOGIN, data={"username": "x", "password": "y"}).status_code == 403
    line = last(guarded, visitor, "form_refused")
    assert (line["path"], re.search("CSRF", line["reason"]) is not None) == (LOGIN, True)


@pytest.mark.parametrize("junk", ["x", JUNK[5], JUNK[6], JUNK[-1]])
def test_what_is_no_passkey(guarded: Instance, visitor: Visitor, junk: str) -> None:
    visitor.get(f"{FACTORS}webauthn/login/", headers={"accept": "application/json"})
    visitor.send_form(f"{FACTORS}webauthn/login/", credential=junk)
    assert last(guarded, visitor, "sign_in_failed")["by"] == "second factor"
