"""A file that holds a key, which is its owner's alone."""

import stat
from pathlib import Path


def read(file: Path) -> str:
    """The key, without the space around it; OSError. ValueError says it where others can read it, or it is no text."""
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{file}: others can read this key; run: chmod 600 {file}")
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8") from None
