"""Every dependency is pinned, has its reason, and is there for what imports it."""

import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.markdown import rows
from tests.house.modules import ROOT, modules

FILES = ("requirements.txt", "requirements-demo.txt", "requirements-dev.txt")
OWN = {"apps", "bench", "citadel", "tests"}


def requirements(name: str) -> Iterator[tuple[Requirement, bool]]:
    """Each requirement of a file, and whether it is of the first group: what the project itself has chosen."""
    first = True
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line), first
        first = first and bool(line)


def chosen() -> list[str]:
    return [canonicalize_name(one.name) for name in FILES for one, first in requirements(name) if first]


def test_each_choice_has_its_reason_and_each_reason_its_choice() -> None:
    documented = {canonicalize_name(row[0]): row[1] for row in rows((ROOT / "docs/dependencies.md").read_text())}
    assert sorted(documented) == sorted(chosen())
    assert all(documented.values())


@pytest.mark.parametrize("name", FILES)
def test_each_requirement_is_pinned_once(name: str) -> None:
    found = [one for one, _ in requirements(name)]
    for one in found:
        assert [part.operator for part in one.specifier] == ["=="], one
        assert "*" not in str(one.specifier), one
    names = [canonicalize_name(one.name) for one in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("folders", "files"), [(("apps", "citadel"), FILES[:2]), (("bench", "tests"), FILES)], ids=["product", "tests"]
)
def test_what_is_imported_is_required(folders: tuple[str, ...], files: tuple[str, ...]) -> None:
    provided = packages_distributions()
    required = {canonicalize_name(one.name) for name in files for one, _ in requirements(name)}
    imported = {name.partition(".")[0] for module in modules(*folders) for name in module.imports}
    for package in imported - OWN - set(sys.stdlib_module_names) - {""}:
        distributions = {canonicalize_name(name) for name in provided.get(package, ())}
        assert distributions & required, f"{package} is imported and stands in none of {', '.join(files)}"
