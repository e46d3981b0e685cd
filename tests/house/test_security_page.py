"""docs/security.md answers each requirement of OWASP's ASVS 5.0.0 of level 1 and 2, and its tests are there."""

import ast
import re
from functools import cache
from pathlib import Path

from citadel.sections import SecuritySection
from tests.house.markdown import rows
from tests.house.modules import ROOT

PAGE = (ROOT / "docs/security.md").read_text()
SECTIONS = {
    1: (2, 9, 11, 3, 2),
    2: (3, 3, 4, 1),
    3: (0, 2, 4, 6, 5, 0, 2),
    4: (3, 1, 2, 4),
    5: (1, 3, 2, 3),
    6: (3, 12, 4, 4, 5, 3, 0, 4),
    7: (3, 4, 2, 5, 2, 2),
    8: (2, 3, 1, 1),
    9: (3, 4),
    10: (2, 2, 4, 11, 5, 2, 3),
    11: (2, 3, 3, 4, 1, 1, 0),
    12: (3, 2, 4),
    13: (1, 5, 2, 5),
    14: (2, 4, 3),
    15: (3, 3, 7, 0),
    16: (1, 5, 4, 3, 3),
    17: (1, 4, 2),
}
"""How many requirements of level 1 and 2 each section of a chapter begins with; those of level 3 follow them."""
VERDICTS = ("holds", "does not apply", "does not hold")
NUMBER = re.compile(r"\d+\.\d+\.\d+")


def requirements() -> list[str]:
    """Their numbers, in order."""
    return [
        f"{chapter}.{section}.{number}"
        for chapter, counts in SECTIONS.items()
        for section, count in enumerate(counts, 1)
        for number in range(1, count + 1)
    ]


def answers() -> list[tuple[list[str], str, str, str]]:
    """The numbers of each row, its verdict, how or why, and its tests."""
    found = (row for row in rows(PAGE) if NUMBER.match(row[0]))
    return [(row[0].split(", "), row[2], row[3], row[4]) for row in found]


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's tests."""
    defined = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in defined if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_requirement_is_answered_once() -> None:
    answered = [number for numbers, *_ in answers() for number in numbers]
    assert len(requirements()) == 253
    assert sorted(answered) == sorted(requirements())


def test_each_answer_has_what_it_must() -> None:
    """One that holds a test, the others a reason."""
    for numbers, verdict, how, tests in answers():
        assert verdict in VERDICTS, numbers
        assert how, numbers
        assert verdict != "holds" or "::" in tests, numbers


def test_the_tests_are_there() -> None:
    named = re.findall(r"`(tests/[^`]+\.py)::(test_\w+)`", PAGE)
    assert len(named) == PAGE.count("::")
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(ROOT / path)]
    assert not missing


def test_what_does_not_hold_is_counted() -> None:
    counts = [sum(len(numbers) for numbers, verdict, *_ in answers() if verdict == one) for one in VERDICTS]
    holds, apply, lack = counts
    assert f"Of 253 requirements {holds} hold, {apply} do not apply, and {lack} do not hold." in PAGE


def test_each_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([a-z-]*(?:\.md)?)(?:#([^)]+))?\)", PAGE)
    assert links
    for page, anchor in links:
        text = (ROOT / "docs" / page).read_text() if page else PAGE
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, (
            anchor
        )


def test_each_network_is_told() -> None:
    """To which Citadel connects by somebody's word."""
    for name in SecuritySection.model_fields:
        assert not name.endswith("_networks") or name == "metrics_networks" or f"`security.{name}`" in PAGE
