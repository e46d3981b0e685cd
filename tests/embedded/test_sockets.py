"""The folder for sockets where the home is too deep for them."""

import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest

from citadel.embedded import sockets
from citadel.embedded.home import Home, StartError


def test_a_squatter_in_the_temporary_folder_is_avoided(tmp_path: Path) -> None:
    home = Home(tmp_path / ("deep" * 25))
    digest = hashlib.sha256(os.fsencode(home.path)).hexdigest()[:12]
    squatted = Path(sockets._temporary()) / f"citadel-{os.geteuid()}-{digest}"
    squatted.mkdir()
    squatted.chmod(0o777)
    try:
        place = sockets.folder(home)
        assert place != squatted
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert sockets.folder(home) == place
        shutil.rmtree(place)
        assert sockets.folder(home) == place
        place.chmod(0o755)
        with pytest.raises(StartError):
            sockets.folder(home)
        place.chmod(0o700)
        sockets.remove(home)
        assert not place.exists()
    finally:
        squatted.rmdir()
