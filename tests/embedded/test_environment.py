"""`bin/environment`: what a fresh, an interrupted, a changed and a broken virtual environment are made into."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from citadel.config import ROOT
from tests.embedded.conftest import eventually

COMMAND = """#!/bin/sh
wanted='requirements.txt'
. "$(dirname -- "$(readlink -f -- "$0")")/environment"
echo "home $CITADEL_HOME"
exec "$python" -c 'import sys, tiny; print("version", tiny.VERSION, "prefix", sys.prefix)'
"""


class Repository:
    """A repository with the real `bin/environment`, one command, and one requirement, a wheel of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        for name in ("environment", "prepare.py"):
            shutil.copy(ROOT / "bin" / name, root / "bin")
        self.command = root / "bin" / "try"
        self.command.write_text(COMMAND)
        self.command.chmod(0o755)
        self.require(1)

    def require(self, version: int) -> None:
        wheel = self.root / f"tiny-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            about = f"tiny-{version}.dist-info"
            archive.writestr("tiny.py", f"VERSION = {version}\n")
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", "")
        (self.root / "requirements.txt").write_text(f"tiny @ {wheel.as_uri()}\n")

    def launch(self, *, stderr: int = subprocess.STDOUT, **environment: str) -> "subprocess.Popen[str]":
        mine = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PIP_NO_INDEX": "1", "HOME": str(self.root)}
        return subprocess.Popen(
            [self.command],
            cwd="/",
            env={**mine, **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def run(self, **environment: str) -> str:
        process = self.launch(**environment)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """In a folder whose name a careless script would trip over; used by all tests here, one after the other."""
    return Repository(tmp_path_factory.mktemp("clone") / "with 'a name")


def test_made_once_and_installed_again_only_after_a_change(repository: Repository) -> None:
    first = repository.run()
    assert "is not there yet; making it" in first
    assert "Installing requirements.txt" in first
    assert f"version 1 prefix {repository.root}/.venv" in first
    assert f"home {repository.root}/var" in first
    again = repository.run(CITADEL_HOME="tmp/elsewhere")
    assert again.splitlines() == ["home //tmp/elsewhere", f"version 1 prefix {repository.root}/.venv"]
    repository.require(2)
    changed = repository.run()
    assert "making it" not in changed
    assert "version 2" in changed


def test_what_is_installed_is_told_beside_the_commands_own_output(repository: Repository) -> None:
    """A command's output may be a key that a script keeps."""
    (repository.root / ".venv" / ".installed-requirements").write_text("x")
    output, beside = repository.launch(stderr=subprocess.PIPE).communicate(timeout=120)
    assert [line.split()[0] for line in output.splitlines()] == ["home", "version"]
    assert beside.splitlines()[0].startswith("Installing requirements.txt")
    assert not (repository.root / ".venv" / "tmp").exists()


def test_a_link_to_a_command_is_followed(repository: Repository, tmp_path: Path) -> None:
    link = tmp_path / "linked"
    link.symlink_to(repository.command)
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(repository.root)}
    done = subprocess.run([link], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(f"home {repository.root}/var\n"), done.stderr


def test_so_is_one_to_ours(tmp_path: Path) -> None:
    link = tmp_path / "linked"
    link.symlink_to(ROOT / "bin" / "manage")
    done = subprocess.run([link, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupted_start_is_mended_by_the_next_two_at_once(repository: Repository, shims: Path) -> None:
    """And a Python that does not run is passed over, in the environment as on the path."""
    (repository.root / ".venv" / "bin" / "python").rename(repository.root / ".venv" / "bin" / "gone")
    (shims / "python3").symlink_to(sys.executable)
    search = {"PYTHON": "", "PATH": f"{shims}:/usr/bin:/bin"}
    interrupted = repository.launch(**search)
    eventually((repository.root / ".venv" / ".unfinished").exists)
    os.killpg(interrupted.pid, signal.SIGKILL)
    assert "does not run any more; making it" in interrupted.communicate()[0]
    one, other = repository.launch(**search), repository.launch(**search)
    said = [process.communicate(timeout=120)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), said
    assert sum("was left unfinished; making it" in text for text in said) == 1
    assert sum("waiting for it" in text for text in said) == 1
    assert all("version 2" in text for text in said)


def test_without_a_python_it_says_what_it_tried(repository: Repository, shims: Path) -> None:
    for name in ("sh", "dirname", "head", "readlink"):
        (shims / name).symlink_to(str(shutil.which(name)))
    (repository.root / ".venv" / "bin" / "python").unlink()
    process = repository.launch(PYTHON="", PATH=str(shims))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "python3.12: pyenv: python3.12: command not found" in said
    assert "python3: is not installed" in said
    assert "PYTHON=/path/to/python3" in said


@pytest.mark.parametrize(
    ("yaml", "variables", "wanted"),
    [
        ("", {}, True),
        ("demo_fleet: false", {}, False),
        ("demo_fleet: false", {"CITADEL_DEMO_FLEET": "1"}, True),
        ("", {"CITADEL_DEMO_FLEET": "No"}, False),
        ("demo_fleet: [", {}, False),
    ],
)
def test_the_demo_models_are_installed_where_the_settings_want_them(
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    yaml: str,
    variables: dict[str, str],
    wanted: bool,
) -> None:
    """Whoever says it, YAML or a variable. The start itself ends here with a secret that is too short."""
    shutil.copy(ROOT / "bin" / "run", repository.root / "bin")
    (repository.root / "requirements-demo.txt").write_text((repository.root / "requirements.txt").read_text())
    (repository.root / ".venv" / ".installed-requirements-demo").unlink(missing_ok=True)
    if not (repository.root / "citadel").exists():
        (repository.root / "citadel").symlink_to(ROOT / "citadel")
    (tmp_path / "config" / "global").mkdir(parents=True)
    (tmp_path / "config" / "global" / "citadel.yaml").write_text(yaml)
    monkeypatch.setattr(repository, "command", repository.root / "bin" / "run")
    process = repository.launch(
        PYTHONPATH=os.pathsep.join(sys.path[1:]),
        CITADEL_HOME=str(tmp_path),
        CITADEL_SECURITY__SECRET_KEY="short",
        **variables,
    )
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert said.count("Installing requirements-demo.txt") == wanted, said
    assert ("secret_key is shorter" in said) == (yaml != "demo_fleet: ["), said
    assert "Traceback" not in said


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """A folder of pyenv's shims for versions that are not installed: they are there and fail."""
    for name in ("python3.13", "python3.12", "python3.11"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 'pyenv: {name}: command not found' >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path
