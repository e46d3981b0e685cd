"""Keys in the console."""

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.contrib.auth import get_user_model
from django.test import Client as Browser

from tests.instance import Instance

ADD = "/admin/gateway/key/add/"


@pytest.fixture
def browser(citadel: Instance) -> Iterator[Browser]:
    user = get_user_model().objects.create_superuser(f"admin-{secrets.token_hex(4)}", password="p")
    browser = Browser(headers={"host": "localhost"})
    browser.force_login(user)
    yield browser
    user.delete()


@pytest.fixture
def team(citadel: Instance) -> Iterator[str]:
    from apps.gateway.models import Team

    made = Team.objects.create(slug=f"team-{secrets.token_hex(4)}", name="t")
    yield str(made.pk)
    made.delete()


def test_the_form_says_what_its_fields_mean(browser: Browser) -> None:
    page = browser.get(ADD).content.decode()
    assert ">null<" not in "".join(page.split())
    for words in (
        "one a line; empty for all",
        "empty is limits.client.requests_per_minute",
        "Requests at once. 0 is no",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("", None),
        ("tiny", ["tiny"]),
        (" tiny \r\n\r\nllama3.2:latest\r\n", ["tiny", "llama3.2:latest"]),
    ],
)
def test_models_are_names_one_a_line(browser: Browser, team: str, written: str, kept: list[str] | None) -> None:
    from apps.gateway.models import Key

    form = {"name": "n", "team": team, "role": "developer", "max_priority": "critical", "allowed_models": written}
    assert browser.post(ADD, form).status_code == 302
    key = Key.objects.get(team_id=team)
    assert key.allowed_models == kept
    lines = "\n".join(kept or [])
    assert f">\n{lines}</textarea>" in browser.get(f"/admin/gateway/key/{key.pk}/change/").content.decode()
    assert browser.post(f"/admin/gateway/key/{key.pk}/change/", form).status_code == 302
    key.refresh_from_db()
    assert key.allowed_models == kept


def test_a_name_that_cannot_be_kept_is_refused(browser: Browser, team: str) -> None:
    form = {"name": "n", "team": team, "role": "developer", "max_priority": "critical", "allowed_models": "a\0b"}
    answer = browser.post(ADD, form)
    assert answer.status_code == 200
    assert "Null characters are not allowed" in answer.content.decode()


def test_an_end_lies_in_the_future_and_one_that_is_over_stays(browser: Browser, citadel: Instance, team: str) -> None:
    from apps.gateway.models import Key

    form = {"name": "n", "team": team, "role": "developer", "max_priority": "critical"}
    past, later = ({"expires_0": day, "expires_1": "12:00:00"} for day in ("2020-01-31", "2100-01-31"))
    answer = browser.post(ADD, {**form, **past})
    assert answer.status_code == 200
    assert "must lie in the future" in answer.content.decode()
    assert browser.post(ADD, {**form, **later}).status_code == 302
    key = Key.objects.get(team_id=team)
    page, over = f"/admin/gateway/key/{key.pk}/change/", datetime(2020, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)
    assert browser.post(page, {**form, **past}).status_code == 200
    Key.objects.filter(pk=key.pk).update(expires=over)
    assert browser.post(page, {**form, **past, "name": "m"}).status_code == 302
    key.refresh_from_db()
    assert (key.name, key.expires) == ("m", over.replace(microsecond=0))


def test_scopes_and_addresses_are_kept_and_what_makes_no_sense_is_refused(browser: Browser, team: str) -> None:
    from apps.gateway.models import Key

    form = {"name": "n", "team": team, "role": "developer", "max_priority": "critical"}
    for column, good, bad in (("scopes", "models.use", "everything"), ("addresses", "10.0.0.0/8", "10.0.0.1/8")):
        assert browser.post(ADD, {**form, column: bad}).status_code == 200
        assert browser.post(ADD, {**form, column: f"{good}\r\n"}).status_code == 302
        assert getattr(Key.objects.filter(team_id=team).latest("pk"), column) == [good]


def test_a_key_is_given_another_secret_and_shown_once(browser: Browser, citadel: Instance, team: str) -> None:
    from apps.gateway.models import Key, Team

    old = citadel.key(Team.objects.get(pk=team).slug)
    Key.objects.filter(key_id=old.split("_")[1]).update(key_id=f"c{secrets.token_hex(5)[1:]}")
    key = Key.objects.get(team_id=team)
    chosen = {"action": "rotate", "_selected_action": [str(key.pk)]}
    page = browser.post("/admin/gateway/key/", chosen, follow=True).content.decode()
    [new] = re.findall(rf"ctd_{key.key_id}_[0-9A-Za-z]{{39}}", page)
    assert new != old
    assert f"The new secret of {key.key_id}, shown this once: {new} " in page
    assert new not in browser.get("/admin/gateway/key/").content.decode()
    key.refresh_from_db()
    assert key.former_until


def test_what_else_proves_a_key_s_holder_is_written_as_openssl_prints_it(browser: Browser, team: str) -> None:
    from apps.gateway.models import Key

    fingerprint, line = secrets.token_hex(32), "MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs="
    colons = ":".join(fingerprint[place : place + 2] for place in range(0, 64, 2)).upper()
    form = {"name": "n", "team": team, "role": "developer", "max_priority": "critical"}
    proofs = {"certificates": f"SHA256 Fingerprint={colons}\r\n", "public_key": f"-----BEGIN PUBLIC KEY----- {line}"}
    page = browser.post(ADD, {**form, **proofs}, follow=True).content.decode()
    key = Key.objects.get(team_id=team)
    assert (key.certificates, key.public_key) == ([fingerprint], line)
    assert re.search(rf"ctd_{key.key_id}_\w{{39}} \(its signing secret: cts_{key.key_id}_[\w-]{{43}}\)", page)
    assert "cts_" not in browser.get(f"/admin/gateway/key/{key.pk}/change/").content.decode()
    for column, wrong in (("certificates", fingerprint), ("certificates", "nonsense"), ("public_key", "nonsense")):
        assert browser.post(ADD, {**form, column: wrong}).status_code == 200, "it is tied already, or is none"
    assert Key.objects.filter(team_id=team).count() == 1
