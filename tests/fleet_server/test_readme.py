"""The README says all there is, and the program says it too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.control import ROOT
from tests.fleet.troubles import CATALOGUE, parse

README = (Path(__file__).parents[1] / "fleet" / "README.md").read_text()
PROGRAM = [sys.executable, "-m", "tests.fleet"]


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_each_behaviour_is_in_the_readme_with_its_fields(name: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    assert all(f"`{field}" in row for field in CATALOGUE[name].__struct_fields__)
    assert parse(name)[0].name == name


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)


def test_the_program_lists_behaviours_and_refuses_what_it_does_not_know() -> None:
    assert all(f"{name} " in run("--list").stdout for name in ("die", "hang", "silent_host"))
    refused = run("--behave", "fly")
    assert refused.returncode == 2
    assert "no behaviour is named 'fly'" in refused.stderr
    assert run("--behave", '{"do": "hang", "next": 0}').returncode == 2


def test_the_program_prints_its_ports_and_ends_when_told() -> None:
    behaviours = ("--behave", '{"do": "hang", "path": "/health"}', "--behave", '{"hang": {}}')
    with subprocess.Popen([*PROGRAM, *behaviours], cwd=ROOT, stdout=subprocess.PIPE) as program:
        assert program.stdout
        ports = json.loads(program.stdout.readline())
        program.terminate()
    assert program.returncode == 0
    assert set(ports) == {"port", "admin"}
    assert all(0 < port < 65536 for port in ports.values())
