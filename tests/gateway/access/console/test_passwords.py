"""The passwords of people: which may be, and who changes them."""

import re
import secrets
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError

from apps.gateway.access.console.words import WithoutKnownWords
from citadel import config
from citadel.sections import Config, ConfigError, ServerSection
from tests.gateway.access.console.visitor import LOGIN, PASSWORD, Visitor
from tests.instance import Instance

CHANGE = "/admin/password_change/"


@pytest.fixture
def inside(visitor: Visitor, name: str) -> Visitor:
    """Signed in with both factors."""
    visitor.sign_in(name)
    visitor.set_up()
    return visitor


def change(visitor: Visitor, new: str, old: str = PASSWORD) -> bool:
    """Whether another password is taken."""
    answer = visitor.send_form(CHANGE, old_password=old, new_password1=new, new_password2=new)
    return answer.status_code == 302


@pytest.mark.parametrize("new", ["eleven char", "qwerty123456", "123qweasdzxc"])
def test_short_and_common_ones_are_refused(inside: Visitor, new: str) -> None:
    assert not change(inside, new)


@pytest.mark.parametrize(
    "new",
    [
        "we are umbrella people",
        "UMBRELLA-of-all-things",
        "my-Umbre11a-is-black",
        "so b l u e h a r v e s t",
        "C1t@del is open",
    ],
)
def test_words_of_the_organisation_are_refused(inside: Visitor, new: str) -> None:
    assert not change(inside, new)
    assert change(inside, "an umbrel is not the whole of it")


@pytest.mark.parametrize(
    ("public_url", "refused", "taken"),
    [("https://ki.hospital.example", "the hospital of my town", "kite and candle"), (None, "x-citadel-x", "hospital")],
)
def test_so_is_what_the_host_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public_url: str | None, refused: str, taken: str
) -> None:
    rules = Config(home=tmp_path, server=ServerSection(public_url=public_url))
    monkeypatch.setattr(config, "load", lambda: rules)
    WithoutKnownWords().validate(taken)
    with pytest.raises(ValidationError, match="guessed first"):
        WithoutKnownWords().validate(refused)


def test_what_is_in_too_many_passwords_is_no_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"console\.password_words: 'R&D' is in too many passwords"):
        config.read({"CITADEL_HOME": str(tmp_path), "CITADEL_CONSOLE__PASSWORD_WORDS": '["R&D"]'})


def test_a_change_asks_for_the_old_one(guarded: Instance, inside: Visitor, name: str) -> None:
    new = f"  {secrets.token_hex(40)} ü字 "
    assert not change(inside, new, old="another one of mine")
    assert change(inside, new), "of any length and any characters"
    with Visitor(guarded) as again:
        assert "location" not in again.sign_in(name, new.strip()).headers, "as it was typed, and no other"
        assert again.sign_in(name, new).status_code == 302


def test_it_is_hidden_and_may_be_pasted(inside: Visitor, guarded: Instance) -> None:
    with Visitor(guarded) as stranger:
        pages = [stranger.get(LOGIN).text, inside.get(CHANGE).text]
    for page in pages:
        fields = re.findall(r"<input[^>]*name=\"[a-z_]*password[^>]*>", page)
        assert fields
        assert all('type="password"' in field and 'autocomplete="off"' not in field for field in fields)


def test_what_is_kept_is_a_slow_digest(guarded: Instance, name: str) -> None:
    from django.contrib.auth.models import User

    kept = User.objects.get(username=name).password
    assert kept.startswith("argon2$argon2id$v=19$m=19456,t=2,p=1$")


def test_what_was_kept_otherwise_opens_and_is_kept_anew(guarded: Instance, visitor: Visitor, name: str) -> None:
    from django.contrib.auth.hashers import make_password
    from django.contrib.auth.models import User

    account = User.objects.filter(username=name)
    account.update(password=make_password(PASSWORD, hasher="pbkdf2_sha256"))
    visitor.sign_in(name)
    visitor.set_up()
    assert account.get().password.startswith("argon2$")


def test_what_makes_codes_is_kept_encrypted(inside: Visitor, name: str) -> None:
    from allauth.mfa.models import Authenticator

    for factor in Authenticator.objects.filter(user__username=name):
        assert all(
            str(value).startswith("gAAAA") for field, value in factor.data.items() if field in ("secret", "seed")
        )
        assert {"secret", "seed"} & set(factor.data)
