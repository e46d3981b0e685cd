"""The programs in docs/access.md sign requests that a running Citadel takes."""

import os
import re
import subprocess
import sys

import pytest

from apps.gateway.access.keys.life import signing_secret
from tests.house.modules import ROOT
from tests.instance import Instance

_ALL = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/access.md").read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS = [program for program in _ALL if "SIGNING_SECRET" in program]


def test_both_forms_have_their_program() -> None:
    assert ["x-citadel-signature" in text for text in PROGRAMS] == [True, False]
    assert "signature-input" in PROGRAMS[1]


@pytest.mark.parametrize("program", PROGRAMS, ids=["simple", "rfc9421"])
def test_it_runs_as_it_stands(citadel: Instance, program: str) -> None:
    secret = signing_secret(citadel.key())
    citadel.settle()
    environment = {**os.environ, "OPENAI_BASE_URL": f"{citadel.url}/v1", "SIGNING_SECRET": secret}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    status, answer = done.stdout.split("\n", 1)
    assert status == "200"
    assert '"finish_reason"' in answer
