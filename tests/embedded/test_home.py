"""Which folders Citadel takes for its own, and what it leaves of those that are not."""

import stat
from pathlib import Path

import pytest

from citadel.embedded.home import Home, StartError
from tests.embedded.conftest import Installation


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.parametrize("was", [0o1777, 0o755, 0o750])
def test_a_folder_that_others_use_too_is_left_as_it_is(folder: Path, was: int) -> None:
    shared = folder / "shared"
    shared.mkdir()
    (shared / "somebody's").touch()
    shared.chmod(was)
    installation = Installation(shared)
    process = installation.launch()
    said = installation.output()
    assert process.returncode == 1
    assert f"CITADEL_HOME={shared}/citadel" in said
    assert "Traceback" not in said
    assert mode(shared) == was
    assert [path.name for path in shared.iterdir()] == ["somebody's"]


def test_an_empty_one_that_everybody_shares_too(folder: Path) -> None:
    folder.chmod(0o1777)
    with pytest.raises(StartError, match="a folder of its own"):
        Home(folder).prepare()
    assert mode(folder) == 0o1777


@pytest.mark.parametrize("there", ["", "config/global/citadel.yaml", "run/supervisor.lock"])
def test_an_open_one_is_closed_where_it_is_empty_or_citadels_already(folder: Path, there: str) -> None:
    """Settings may be laid down before the first start."""
    home = folder / "home"
    home.mkdir()
    if there:
        (home / there).parent.mkdir(parents=True)
        (home / there).touch()
    if "lock" in there:
        (home / "beside").touch()
    home.chmod(0o755)
    Home(home).prepare()
    assert {mode(one) for one in (home, home / "run", home / "logs")} == {0o700}


def test_one_that_is_closed_may_hold_what_it_likes(folder: Path) -> None:
    (folder / "lost+found").mkdir()
    Home(folder).prepare()
    assert mode(folder / "lost+found") != 0o700


def test_there_is_a_place_for_settings_and_one_that_is_there_stays_as_it_is(folder: Path) -> None:
    Home(folder).prepare()
    place = folder / "config" / "global"
    assert mode(place) == 0o700
    place.chmod(0o555)
    Home(folder).prepare()
    assert mode(place) == 0o555
    place.chmod(0o700)
