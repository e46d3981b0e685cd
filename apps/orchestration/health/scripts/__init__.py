"""What is decided inside Redis: one script a file, each atomic."""

from pathlib import Path

from citadel.redis import Script


def script(name: str) -> Script:
    """The script in the file of that name."""
    return Script((Path(__file__).parent / f"{name}.lua").read_text())
