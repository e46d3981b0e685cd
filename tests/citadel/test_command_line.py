"""`bin/manage`: what it offers, what it says of each command, and what it says where no Citadel runs."""

import signal
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands

from citadel import __version__, config
from citadel.command_line import COMMANDS
from tests.command import manage, run
from tests.instance import ROOT, Instance


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Of a Citadel that has run and does not run now."""
    config.make_secret(tmp_path)
    return tmp_path


def test_every_command_of_ours_is_on_the_page() -> None:
    ours = {name for name, app in get_commands().items() if str(app).startswith("apps.")}
    assert set(COMMANDS) == {*ours, "doctor", "agent"}


@pytest.mark.parametrize("words", [(), ("help",), ("--help",), ("-h",)])
def test_the_page_has_a_line_for_each_and_points_to_djangos(home: Path, words: tuple[str, ...]) -> None:
    done = manage(home, *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert "bin/manage help --commands" in lines[-1]
    assert "flush" not in done.stdout


def test_all_commands_are_to_be_had(home: Path) -> None:
    assert {*COMMANDS, "flush", "migrate", "changepassword"} <= set(manage(home, "help", "--commands").stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_about_itself(home: Path, name: str) -> None:
    asked, named = manage(home, name, "--help"), manage(home, "help", name)
    assert (asked.returncode, asked.stdout) == (0, named.stdout)
    assert named.returncode == 0
    assert asked.stdout.startswith(f"usage: bin/manage {name} ")
    for noise in ("manage.py", "--settings", "--pythonpath", "--traceback", "--skip-checks", "--no-color"):
        assert noise not in asked.stdout


def test_the_help_of_a_verb_too(home: Path) -> None:
    assert manage(home, "server", "add", "--help").stdout.startswith("usage: bin/manage server add ")


def test_what_is_no_command_is_told(home: Path) -> None:
    done = manage(home, "doctr")
    assert done.returncode == 1
    assert done.stderr == "Unknown command: 'doctr'\nType 'bin/manage help' for usage.\n"


@pytest.mark.parametrize("words", ["server list", "key list", "key create --team t --name n", "migrate"])
def test_without_a_citadel_it_says_that_there_is_none(home: Path, words: str) -> None:
    done = manage(home, *words.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"No Citadel runs in {home} and DATABASE_URL is not set. Start it with bin/run")
    assert done.stderr.count("\n") == 1


def test_where_nothing_ever_ran_too(tmp_path: Path) -> None:
    assert manage(tmp_path, "server", "list").stderr.startswith(f"No Citadel runs in {tmp_path} ")


def test_a_file_of_settings_that_nobody_reads_is_told_where_settings_are_shown(home: Path) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "citadel.yaml").write_text("server: {port: 9000}\n")
    done = manage(home, "config", "show")
    assert done.returncode == 0
    assert done.stderr == f"Not read: {home}/config/citadel.yaml. Settings stand in {home}/config/global/citadel.yaml\n"


def test_a_setting_that_is_wrong_is_what_is_told(home: Path) -> None:
    (home / "config" / "global").mkdir(parents=True)
    (home / "config" / "global" / "citadel.yaml").write_text("server: {port: x}\n")
    done = manage(home, "server", "list")
    assert done.returncode == 1
    assert "citadel.yaml: server.port: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "place"),
    [("postgresql://u:hidden@127.0.0.1:1/x", "127.0.0.1:1"), ("host=/nowhere password=hidden dbname=x", "/nowhere")],
)
def test_a_database_that_is_given_and_away_is_told_with_its_place(home: Path, address: str, place: str) -> None:
    done = run(home, "env", f"DATABASE_URL={address}", sys.executable, str(ROOT / "manage.py"), "key", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"The database at {place} can't be used: ")
    assert done.stderr.count("\n") == 1
    assert "hidden" not in done.stderr


@pytest.mark.parametrize("words", ["--version", "version", "server --version"])
def test_the_version_is_citadels(home: Path, words: str) -> None:
    done = manage(home, *words.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Citadel {__version__} (Django ")


@pytest.mark.parametrize(("name", "verbs"), [("key", "create,list,rotate,revoke"), ("fleet", "export,diff,apply")])
def test_without_a_verb_the_verbs_are_named(home: Path, name: str, verbs: str) -> None:
    done = manage(home, name)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: the following arguments are required: {{{verbs}}}\n")


def test_a_password_is_the_administrators_where_no_name_is_said(citadel: Instance) -> None:
    assert "Changing password for user 'admin'" in manage(citadel.home, "changepassword").stdout


def test_an_input_that_ends_early_is_told(citadel: Instance) -> None:
    done = manage(citadel.home, "changepassword", "admin")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "bin/manage changepassword: the input ended before everything was said"
    assert ".py" not in done.stderr


@pytest.mark.parametrize("words", ["config show", "doctor", "help", "server --help", "agent --help"])
def test_a_reader_who_has_heard_enough_is_no_error(home: Path, words: str) -> None:
    pipe = f"env -u PYTHONUNBUFFERED {sys.executable} {ROOT}/manage.py {words} | true; exit ${{PIPESTATUS[0]}}"
    done = run(home, "bash", "-c", pipe)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
