"""`bin/manage key`: keys are made, shown and revoked beside the running Citadel."""

import re
import secrets
import time
from datetime import datetime

import pytest
from django.core.management import CommandError

from tests.command import call, manage, run
from tests.gateway.client import Client, chat
from tests.held_up import HELD_UP
from tests.instance import ROOT, Instance

KEY = re.compile(r"ctd_[0-9A-Za-z]{10}_[0-9A-Za-z]{39}\n")


@pytest.fixture
def team() -> str:
    return f"team-{secrets.token_hex(4)}"


async def test_a_new_key_stands_alone_on_standard_output_and_works_at_once(
    citadel: Instance, client: Client, team: str
) -> None:
    made = run(citadel.home, str(ROOT / "bin" / "manage"), "key", "create", "--team", team, "--name", "laptop")
    answer = await client.post(chat("smollm2:135m", max_tokens=1), key=made.stdout.strip())
    assert (made.returncode, made.stderr) == (0, f"Note: made the new team '{team}'.\n")
    assert KEY.fullmatch(made.stdout)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-limit-requests"] == "60"
    assert (await client.get("/metrics", key=made.stdout.strip())).status == 403, "the role is developer unless said"


async def test_role_models_and_limits_are_as_said(citadel: Instance, client: Client, team: str) -> None:
    def create(*options: str) -> str:
        return call("key", "create", "--team", team, "--name", "n", *options).strip()

    unlimited = create("--requests-per-minute", "0", "--concurrent", "0")
    answer = await client.post(chat("smollm2:135m", max_tokens=1), key=unlimited)
    assert answer.status == 200
    assert "x-ratelimit-limit-requests" not in answer.headers
    limited = create("--requests-per-minute", "1", "--model", "smollm2:135m", "--model", "x", "--role", "operator")
    assert [row["id"] for row in (await client.get("/v1/models", key=limited)).json()["data"]] == ["smollm2:135m"]
    assert (await client.get("/metrics", key=limited)).status == 200
    for status in (200, 429):
        assert (await client.post(chat("smollm2:135m", max_tokens=1), key=limited)).status == status
    for role, uses in (("member", 200), ("viewer", 403)):
        key = create("--role", role)
        assert (await client.get("/v1/models", key=key)).status == uses
        assert [row["slug"] for row in (await client.get("/api/v1/teams", key=key)).json()["data"]] == [team]


async def test_the_list_shows_keys_without_their_secrets_and_revoking_refuses_one_within_a_second(
    citadel: Instance, client: Client, team: str
) -> None:
    key = call("key", "create", "--team", team, "--name", "lost").strip()
    _, key_id, secret = key.split("_")

    def row() -> list[str]:
        listed = call("key", "list")
        assert secret not in listed
        [line] = [line for line in listed.splitlines() if line.startswith(key_id)]
        return line.split("\t")

    assert row() == [key_id, team, "lost", "developer", "in force", "never"]
    columns = ["key", "team", "name", "role", "state", "last used"]
    assert call("key", "list").splitlines()[0].split("\t") == columns
    done = manage(citadel.home, "key", "revoke", key_id)
    revoked = time.monotonic()
    assert (done.returncode, done.stdout) == (0, f"{key_id}: revoked, refused within a second\n")
    while (await client.get("/v1/models", key=key)).status != 401:
        assert time.monotonic() - revoked < 1 + HELD_UP
    assert row()[4] == "revoked"
    with pytest.raises(CommandError, match=f"no key '{key_id}' in force"):
        call("key", "revoke", key_id)


@pytest.mark.parametrize(("said", "kept"), [([], "high"), (["--max-priority", "critical"], "critical")])
def test_who_may_claim_the_highest_priority_is_said(citadel: Instance, team: str, said: list[str], kept: str) -> None:
    """Else any team could put all others out of a full waiting room. The first key, an administrator's, may."""
    from apps.gateway.models import Key

    key_id = call("key", "create", "--team", team, "--name", "n", *said).split("_")[1]
    assert Key.objects.get(key_id=key_id).max_priority == kept
    assert Key.objects.get(key_id=citadel.admin_key.split("_")[1]).max_priority == "critical"


@pytest.mark.parametrize(
    ("said", "kept"), [("2100-01-31", "2100-01-31T00:00+00:00"), ("2100-01-31T18:00+01:00", "2100-01-31T17:00+00:00")]
)
def test_a_key_may_expire(citadel: Instance, team: str, said: str, kept: str) -> None:
    from apps.gateway.models import Key

    key_id = call("key", "create", "--team", team, "--name", "n", "--expires", said).split("_")[1]
    assert Key.objects.get(key_id=key_id).expires == datetime.fromisoformat(kept)


def test_a_model_that_no_server_has_is_noted_beside_the_key(citadel: Instance, team: str, model: str) -> None:
    words = ("key", "create", "--team", team, "--name", "n", "--model", "smollm2:135m")
    citadel.key(team)
    known, unknown = manage(citadel.home, *words), manage(citadel.home, *words, "--model", model)
    assert (known.returncode, known.stderr) == (0, "")
    assert unknown.returncode == 0
    assert KEY.fullmatch(unknown.stdout)
    assert unknown.stderr == f"Note: no server has {model} at present.\n"


@pytest.mark.parametrize(
    ("options", "about"),
    [
        (["--team", "t t", "--name", "never-made"], "^--team: .*slug"),
        (["--team", "x" * 65, "--name", "never-made"], "^--team: .*64"),
        (["--team", "", "--name", "never-made"], r"^--team: This field cannot be blank\.$"),
        (["--team", "t", "--name", ""], r"^--name: This field cannot be blank\.$"),
        (["--team", "t"], "--name"),
        (["--name", "never-made"], "--team"),
        (["--team", "t", "--name", "never-made", "--role", "king"], "king"),
        (["--team", "t", "--name", "never-made", "--concurrent", "-1"], "--concurrent: '-1' is no whole number"),
        (["--team", "t", "--name", "never-made", "--concurrent", "9" * 12], "^--concurrent: "),
        (["--team", "t", "--name", "never-made", "--model", ""], "^--model: "),
        (["--team", "t", "--name", "never-made", "--expires", "soon"], "--expires: 'soon' is no date"),
        (["--team", "t", "--name", "never-made", "--expires", "2020-01-01"], "--expires: 2020-01-01 is over"),
        (["--team", "t", "--name", "never-made", "--requests-per-minute", "many"], "--requests-per-minute: 'many' is"),
        (["--team", "t", "--name", "x" * 200], "128"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_made(citadel: Instance, options: list[str], about: str) -> None:
    from apps.gateway.models import Key

    with pytest.raises(CommandError, match=about):
        call("key", "create", *options)
    assert not Key.objects.filter(name__in=("never-made", "x" * 200)).exists()


async def test_a_rotated_key_is_printed_and_the_old_one_ends_with_its_grace(
    citadel: Instance, client: Client, team: str
) -> None:
    key = call("key", "create", "--team", team, "--name", "leaked").strip()
    key_id = key.split("_")[1]
    kept = call("key", "rotate", key_id).strip()
    assert [(await client.get("/v1/models", key=one)).status for one in (key, kept)] == [200, 200]
    new = call("key", "rotate", key_id, "--grace", "0").strip()
    assert KEY.fullmatch(f"{new}\n")
    rotated = time.monotonic()
    while [(await client.get("/v1/models", key=one)).status for one in (key, kept, new)] != [401, 401, 200]:
        assert time.monotonic() - rotated < 1 + HELD_UP
    with pytest.raises(CommandError, match="no key 'nobody' in force"):
        call("key", "rotate", "nobody")
    for seconds in ("-1", "x", "2592001"):
        with pytest.raises(CommandError, match="--grace"):
            call("key", "rotate", key_id, "--grace", seconds)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [(("--scope", "everything"), "--scope"), (("--address", "10.0.0.1/8"), "--address")],
)
def test_a_restriction_that_makes_no_sense_is_told_by_its_option(
    citadel: Instance, team: str, options: tuple[str, str], wrong: str
) -> None:
    with pytest.raises(CommandError, match=wrong):
        call("key", "create", "--team", team, "--name", "n", *options)
