"""Tables of Markdown."""

import re
from collections.abc import Iterator


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all tables' rows, heads and rules left out."""
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        if line.startswith("|") and not _is_rule(line) and not _is_rule(lines[number + 1 : number + 2]):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def _is_rule(lines: str | list[str]) -> bool:
    line = lines if isinstance(lines, str) else "".join(lines)
    return bool(line) and set(line) <= set("|-: ")
