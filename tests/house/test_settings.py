"""docs/settings.md tells every setting, its default and its meaning, and no other."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from citadel.config import PLAIN_NAMES, SECRET_LEAVES
from citadel.sections import Config, Section
from tests.house.markdown import rows
from tests.house.modules import ROOT, modules, within

PAGE = (ROOT / "docs/settings.md").read_text()
ADDRESSES = {path: name for name, path in PLAIN_NAMES.items()}


def settings(section: type[Section] = Config, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        path = f"{above}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings(field.annotation, f"{path}.")
        else:
            yield path, field


def documented() -> dict[str, list[str]]:
    """Variable, default and meaning of each setting."""
    return {name.strip("`"): [*(cell.strip("`") for cell in cells), meaning] for name, *cells, meaning in rows(PAGE)}


def test_the_page_has_each_setting_once_and_in_order() -> None:
    named = [row[0].strip("`") for row in rows(PAGE)]
    assert named == [path for path, _ in settings()]


def test_each_has_its_variable_its_default_and_a_sentence() -> None:
    page = documented()
    for path, field in settings():
        variable, default, meaning = page[path]
        assert variable == ADDRESSES.get(path, f"CITADEL_{path.upper().replace('.', '__')}")
        assert _value(default) == _plain(field), path
        assert re.fullmatch(r"[A-Z`].{12,}\.", meaning), f"{path}: {meaning}"


def test_secrets_say_that_they_are() -> None:
    for path in SECRET_LEAVES:
        assert "secret" in documented()[path][2].lower(), path


def test_something_reads_each_setting() -> None:
    """A setting that nothing reads is a promise that nobody keeps."""
    others = (module for module in modules("citadel", "apps") if not within(module.name, "citadel.sections"))
    source = "\n".join(module.path.read_text() for module in others)
    assert not [path for path, _ in settings() if not re.search(rf"\b_?{_expression(path)}\b", source)]


def _expression(path: str) -> str:
    """How a module that reads the setting spells it: its section's name and its own."""
    above, _, name = path.rpartition(".")
    section = r"\w+" if not above or above.startswith("limits.") else above
    return rf"{section}\.{name}" if path != "security.secret_key" else r"\w+\.secret"


def _value(cell: str) -> Any:
    return None if cell == "not set" else yaml.safe_load(cell) if not cell.startswith("var") else cell


def _plain(field: FieldInfo) -> Any:
    if field.is_required():  # the home folder, which has its default from where the program is
        return "var in the project's folder"
    if isinstance(field.default, dict):
        return {name: section.model_dump(exclude_defaults=True) for name, section in field.default.items()}
    return list(field.default) if isinstance(field.default, tuple) else field.default
