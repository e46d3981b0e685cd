"""Tests and benchmarks write, empty and load: never the stores of whoever starts them, however these are named."""

import os
import subprocess
from pathlib import Path

import pytest

from bench import processes
from bench.citadel import Citadel
from bench.targets import Upstream
from citadel.config import PLAIN_NAMES
from tests import instance
from tests.house.modules import ROOT

NAMES = [f"{prefix}{name}{suffix}" for prefix in ("", "CITADEL_") for name in PLAIN_NAMES for suffix in ("", "_FILE")]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "/nowhere")


def test_none_is_at_hand() -> None:
    assert not os.environ.keys() & set(NAMES)


@pytest.mark.usefixtures("named")
def test_bin_test_forgets_them() -> None:
    this = "tests/house/test_operators_stores.py::test_none_is_at_hand"
    done = subprocess.run([ROOT / "bin/test", "-q", this], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("named")
def test_a_benchmark_forgets_them(tmp_path: Path) -> None:
    cores = processes.cores()
    assert not Citadel(tmp_path, cores, Upstream(tmp_path, cores)).environment.keys() & set(NAMES)


@pytest.mark.usefixtures("named")
def test_the_tests_own_citadel_forgets_them(tmp_path: Path) -> None:
    with instance.running(tmp_path / "home", {"CITADEL_DEMO_FLEET": "0"}):
        assert (tmp_path / "home" / "postgres").exists()
