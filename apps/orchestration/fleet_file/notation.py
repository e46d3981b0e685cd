"""The fleet file's YAML, read strictly and written so that it reads back the same.

A key of a server never stands in the file: `api_key_env` names a variable that holds it, `api_key_file` a file.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import yaml

from apps.orchestration.fleet_file.declared import SECTIONS, Alias, Class, Declared, Held, Server

LARGEST = 4 * 1024 * 1024
"""Characters of a file."""
REFERENCES = ("api_key_env", "api_key_file")
WRITTEN = frozenset({"state", "models"})
"""What the file says of a server though it is its default: unsaid it would stay whatever it has become."""
HEAD = """\
# The fleet of a Citadel. bin/manage fleet diff FILE tells what is different, bin/manage fleet apply FILE makes it so.
# Keys of servers are not in here and stay what they are, unless api_key_env or api_key_file says where another one is;
# a server that moves to another address needs one of these, or it is without a key there.
"""

Reference = Callable[[str, str], str]
"""Gives the key for `api_key_env` or `api_key_file` and what it says. LookupError, OSError, ValueError tell why not."""


class FleetFileError(ValueError):
    """The file can't be used; each line of the message names a line of the file."""

    def __init__(self, complaints: Mapping[str, int]):
        self.complaints = complaints
        super().__init__("\n".join(f"line {line}: {text}" for text, line in complaints.items()))


class Lines(dict[tuple[str, ...], int]):
    """Where in the file each thing stands: by section, name, field."""

    def of(self, *path: str) -> int:
        """The line of a path, or of the nearest thing that is above it."""
        while path and path not in self:
            path = path[:-1]
        return self.get(path, 1)


def read(text: str, reference: Reference) -> tuple[Declared, Lines]:
    """What a file declares, and on which lines. FleetFileError names every mistake in it, by line."""
    reader = _Reader(text, reference)
    declared = reader.document()
    if reader.complaints:
        raise FleetFileError(reader.complaints)
    return declared, reader.lines


def write(fleet: Declared) -> str:
    """The file that declares this; what has its default is left out, but for what would stay then."""
    parts = [HEAD]
    for section in SECTIONS:
        if entries := fleet.section(section):
            parts += [f"\n{section}:\n", *(_block(name, entry) for name, entry in sorted(entries.items()))]
    return "".join(parts)


class _Loader(yaml.SafeLoader):
    """Knows no anchors: a few lines of them can mean more than a machine holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # their stub knows no type of it
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not used here", problem_mark=mark)
        return super().compose_node(parent, index)


class _Reader:
    def __init__(self, text: str, reference: Reference):
        self.complaints: dict[str, int] = {}
        self.lines = Lines()
        self._reference = reference
        self._text = text
        self._loader: _Loader

    def document(self) -> Declared:
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._complain((mark.line + 1) if mark else 1, error.problem or "this is not YAML")
        except (yaml.YAMLError, ValueError):
            self._complain(1, "this is not YAML")
        except RecursionError:
            self._complain(1, "it is nested too deeply")
        return Declared()

    def _document(self) -> Declared:
        if len(self._text) > LARGEST:
            self._complain(1, f"the file has more than {LARGEST} characters")
            return Declared()
        self._loader = _Loader(self._text)
        root = self._loader.get_single_node()
        found: dict[str, Any] = {}
        for section, node in self._pairs(root, (), known=SECTIONS) if root else ():
            read_one = {"servers": self._server, "classes": self._class, "aliases": self._alias}[section]
            entries = ((name, read_one(name, entry)) for name, entry in self._pairs(node, (section,)))
            found[section] = {name: entry for name, entry in entries if entry is not None}
        return Declared(**found)

    def _server(self, name: str, node: yaml.Node) -> Server | None:
        path = ("servers", name)
        known = [*(field for field in Server.__struct_fields__ if field != "api_key"), *REFERENCES]
        values: dict[str, Any] = {}
        for field, value in self._pairs(node, path, known=known):
            if field == "models":
                values[field] = self._models(value, (*path, field))
            elif field in REFERENCES:
                values["api_key"] = self._key(field, value)
            else:
                self._take(values, Server, field, value)
        return self._whole(Server, values, path)

    def _class(self, name: str, node: yaml.Node) -> Class | None:
        path = ("classes", name)
        values: dict[str, Any] = {}
        for field, value in self._pairs(node, path, known=Class.__struct_fields__):
            self._take(values, Class, field, value)
        return self._whole(Class, values, path)

    def _alias(self, name: str, node: yaml.Node) -> Alias | None:
        values: dict[str, Any] = {}
        self._take(values, Alias, "model", node, called=name)
        return Alias(**values) if values else None

    def _models(self, node: yaml.Node, path: tuple[str, ...]) -> dict[str, Held]:
        """Each a name, or what is said of it beside its name."""
        if not isinstance(node, yaml.SequenceNode):
            self._complain(_line(node), "models is a list of names, or of {name: …, context_length: …}")
            return {}
        models: dict[str, Held] = {}
        for item in node.value:
            values: dict[str, Any] = {}
            if isinstance(item, yaml.ScalarNode):
                self._take(values, _Named, "name", item)
            else:
                for field, value in self._pairs(item, (), known=_Named.__struct_fields__):
                    self._take(values, _Named, field, value)
            name = values.pop("name", None)
            if name is None:
                self._complain(_line(item), "a model needs a name")
            elif name in models:
                self._complain(_line(item), f"the model {name!r} is there twice")
            else:
                models[name] = Held(**values)
                self.lines[(*path, name)] = _line(item)
        return models

    def _key(self, field: str, node: yaml.Node) -> str | None:
        where = self._loader.construct_object(node, deep=True)
        try:
            return self._reference(field, msgspec.convert(where, str))
        except (LookupError, OSError, ValueError) as error:
            self._complain(_line(node), f"{field}: {error.args[0] if len(error.args) == 1 else error}")
            return None

    def _pairs(
        self, node: yaml.Node, path: tuple[str, ...], *, known: "tuple[str, ...] | list[str] | None" = None
    ) -> Iterator[tuple[str, yaml.Node]]:
        """Keys and values of a mapping, each key once, and one of those `known`."""
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return
        if not isinstance(node, yaml.MappingNode):
            self._complain(_line(node), f"{'.'.join(path) or 'the file'} must hold keys and values")
            return
        seen: set[str] = set()
        for key_node, value in node.value:
            key = self._loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self._complain(_line(key_node), f"the key {key!r} is not text; put it in quotes")
            elif reason := unfit(key):
                self._complain(_line(key_node), f"the key {key!r}: {reason}")
            elif key in seen:
                self._complain(_line(key_node), f"the key {key!r} is there twice")
            elif known is not None and key not in known:
                self._complain(_line(key_node), _unknown(key, known))
            else:
                seen.add(key)
                self.lines[(*path, key)] = _line(key_node)
                yield key, value

    def _take(
        self, values: dict[str, Any], into: type[msgspec.Struct], field: str, node: yaml.Node, *, called: str = ""
    ) -> None:
        """Puts a field's value into `values`, if it is of the field's type."""
        value = self._loader.construct_object(node, deep=True)
        if reason := unfit(value):
            self._complain(_line(node), f"{called or field}: {reason}")
            return
        [type_] = [known.type for known in msgspec.structs.fields(into) if known.name == field]
        try:
            values[field] = msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            self._complain(_line(node), f"{called or field}: {error}")

    def _whole(self, into: "type[_Whole]", values: dict[str, Any], path: tuple[str, ...]) -> "_Whole | None":
        missing = [field.name for field in msgspec.structs.fields(into) if field.required and field.name not in values]
        before = len(self.complaints)
        for field in missing:
            if (*path, field) not in self.lines:  # else its value is wrong, which is told already
                self._complain(self.lines.of(*path), f"{'.'.join(path)} needs {field}")
        return into(**values) if not missing and before == len(self.complaints) else None

    def _complain(self, line: int, text: str) -> None:
        self.complaints.setdefault(text, line)


_Whole = Any


class _Named(Held, frozen=True, kw_only=True):
    """A model as it stands in the file."""

    name: str


def unfit(value: Any) -> str:
    """Why a value can't be kept, as JSON and by PostgreSQL; empty where it can."""
    if isinstance(value, str):
        return "null characters and halves of characters can't be kept" if _UNFIT.search(value) else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value} is no number"
    if isinstance(value, int):
        return "" if abs(value) < 2**63 else "the number is too large"
    if isinstance(value, list):
        return next(filter(None, map(unfit, value)), "")
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        return next(filter(None, map(unfit, [*value, *value.values()])), "" if odd is None else f"{odd!r} is not text")
    return "" if value is None else f"{str(value)!r} is read as a {type(value).__name__}; put it in quotes"


_UNFIT = re.compile("[\0\ud800-\udfff]")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _unknown(key: str, known: "tuple[str, ...] | list[str]") -> str:
    if key == "api_key":
        return "a server's api_key does not stand in this file; name where it is: api_key_env or api_key_file"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"unknown key {key!r}; " + (f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}")


class _Dumper(yaml.SafeDumper):
    """Names in the order of their declaration, lists and what is said of a model in one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Inline(list[Any]):
    """A list in one line."""


class _InlineObject(dict[str, Any]):
    """An object in one line."""


# What can't be seen is escaped, or reading it back would take some of it for the end of a line.
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)
_Dumper.add_representer(
    _Inline, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
_Dumper.add_representer(
    _InlineObject, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)


def _block(name: str, entry: msgspec.Struct) -> str:
    """An entry of a section, indented below its head."""
    text = _yaml({name: entry.model if isinstance(entry, Alias) else _said(entry)})
    if isinstance(entry, Server) and entry.api_key:
        text += "  # It has an api_key.\n"
    return "".join(f"  {line}" if line.strip() else line for line in re.split(r"(?<=\n)", text))


def _yaml(value: Any) -> str:
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10_000_000
    )
    return text


def _said(entry: msgspec.Struct) -> dict[str, Any]:
    """Its fields that are not their defaults or are written all the same, as YAML has them."""
    said: dict[str, Any] = {}
    for field in msgspec.structs.fields(entry):
        value = getattr(entry, field.name)
        usual = {"kind": "", "api_key": value}.get(field.name, _default(field))
        is_written = field.required or field.name in WRITTEN
        if value is None or (value == usual and not is_written):
            continue
        said[field.name] = _models(value) if field.name == "models" else _inline(value)
    return said


def _default(field: Any) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _models(models: Mapping[str, Held]) -> list[Any] | None:
    rows = [_InlineObject({"name": name, **facts}) if (facts := _said(held)) else name for name, held in models.items()]
    return _Inline(rows) if not any(isinstance(row, dict) for row in rows) else rows


def _inline(value: Any) -> Any:
    if isinstance(value, dict):
        return _InlineObject({key: _inline(inner) for key, inner in value.items()})
    return _Inline([_inline(inner) for inner in value]) if isinstance(value, list) else value
