"""`.ci/run` on a machine that lacks things and can't install them."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.modules import ROOT


def test_what_is_not_installed_is_told_and_the_tests_run(tmp_path: Path) -> None:
    for folder in (".ci", "bin", "path"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "bin" / "test").write_text("#!/bin/sh\necho tested\n")
    (tmp_path / "bin" / "test").chmod(0o755)
    (tmp_path / "path" / "python3").symlink_to(sys.executable)
    for name in ("bash", "dirname", "id", "curl"):
        (tmp_path / "path" / name).symlink_to(shutil.which(name) or "/bin/true")
    environment = {"PATH": str(tmp_path / "path")}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "tested\n")
    assert (
        "Not installed, since that takes root and apt-get: nodejs npm chromium prometheus-alertmanager." in done.stderr
    )
