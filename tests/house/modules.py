"""The project's own modules, and what each imports, read from the source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    """One file. `name` is dotted; a package goes by its own name."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """What stands in the file, read when somebody first asks: to read all takes seconds."""
        return ast.parse(self.path.read_text())

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    @property
    def imports(self) -> frozenset[str]:
        """Dotted names of all it imports, wherever in the file: modules, and what is taken out of them."""
        return frozenset(name for node in ast.walk(self.tree) for name in self._imported(node))

    def _imported(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = self._absolute(node)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        drop = node.level - (self.path.name == "__init__.py")
        above = package[: len(package) - drop]
        return ".".join([*above, *([node.module] if node.module else [])])


def within(name: str, package: str) -> bool:
    """Whether a dotted name is `package` or something in it."""
    return name == package or name.startswith(f"{package}.")


@cache
def modules(*folders: str) -> tuple[Module, ...]:
    """All modules under `folders` of the repository, migrations left out."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(
        Module(_name(path), path)
        for path in paths
        if "migrations" not in path.parts and "node_modules" not in path.parts
    )


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
