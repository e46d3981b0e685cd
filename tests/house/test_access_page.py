"""What docs/access.md tells people to type works as it stands, on a running Citadel, and its permissions are all."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from apps.gateway.access.keys.life import signing_secret
from citadel.permissions import IN_OWN_TEAM, PERMISSIONS, ROLES
from tests.fleet.control import Fleet
from tests.house.markdown import rows
from tests.house.modules import ROOT
from tests.instance import Instance

TEXT = (ROOT / "docs/access.md").read_text()
_ALL = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROGRAMS = [program for program in _ALL if "SIGNING_SECRET" in program]
WALK = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
"""A price is known within a second, which a reader takes between two blocks."""
OF_NO_KEY = {"scraper"}


def run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_forms_have_their_program() -> None:
    assert ["x-citadel-signature" in text for text in PROGRAMS] == [True, False]
    assert "signature-input" in PROGRAMS[1]


@pytest.mark.parametrize("program", PROGRAMS, ids=["simple", "rfc9421"])
def test_it_runs_as_it_stands(citadel: Instance, program: str) -> None:
    secret = signing_secret(citadel.key())
    citadel.settle()
    environment = {"OPENAI_BASE_URL": f"{citadel.url}/v1", "SIGNING_SECRET": secret}
    status, answer = run([sys.executable, "-c", program], environment).split("\n", 1)
    assert status == "200"
    assert '"finish_reason"' in answer


def test_a_client_of_oauth_runs_as_it_stands(citadel: Instance) -> None:
    [program] = [text for text in _ALL if "OAuth2Session" in text]
    environment = {"OPENAI_BASE_URL": f"{citadel.url}/v1", "OPENAI_API_KEY": citadel.key()}
    assert "'object': 'list'" in run([sys.executable, "-c", program], environment)


def test_the_way_from_a_team_to_a_revoked_key_can_be_gone(citadel: Instance, model: str, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text("fail-with-body\n")
    script = "sleep 2\n".join(WALK).replace("smollm2:135m", model).replace("museum", f"team-{secrets.token_hex(4)}")
    environment = {
        "CURL_HOME": str(tmp_path),
        "OPENAI_BASE_URL": f"{citadel.url}/v1",
        "OPENAI_API_KEY": citadel.admin_key,
    }
    with Fleet.start(models=[model]) as server, citadel.registered(server.url, [model]):
        told = [json.loads(line) for line in run(["sh", "-e", "-c", script], environment).splitlines()]
    *_, answer, of_key, of_team, budgets, revoked = told
    assert answer["choices"]
    assert of_key["total"]["requests"] == of_team["total"]["requests"] == 1
    assert budgets["data"][0]["spent"]["money"] == of_key["total"]["money"] != "0"
    assert revoked["revoked"]


def test_all_permissions_are_told_with_their_roles() -> None:
    told = {row[0].strip("`"): row[2:] for row in rows(TEXT) if row[0].strip("`") in PERMISSIONS}
    assert told.keys() == PERMISSIONS
    for permission, cells in told.items():
        assert [set(re.findall(r"`(\w+)`", cell)) for cell in cells] == [
            {role for role, has in roles.items() if permission in has} - OF_NO_KEY for roles in (ROLES, IN_OWN_TEAM)
        ], permission
