"""Lint, format and types, by the tools that pyproject.toml sets up."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

from tests.house.modules import ROOT


def run(*command: str, **environment: str) -> None:
    names = ("CITADEL_HOME", "DATABASE_URL", "REDIS_URL", "REDIS_CACHE_URL")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint() -> None:
    run("ruff", "check", "--no-cache", ".")


def test_format() -> None:
    run("ruff", "format", "--check", "--no-cache", ".")


def test_types(tmp_path: Path) -> None:
    """Strict. The plugin for Django loads the settings, which want a secret and an address; neither is used."""
    run(
        "mypy",
        "--no-incremental",
        CITADEL_HOME=str(tmp_path),
        CITADEL_SECURITY__SECRET_KEY=secrets.token_hex(32),
        DATABASE_URL="postgresql://nobody@nowhere/nothing",
    )
