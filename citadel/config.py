"""Reads the configuration, and knows where each of its values came from.

Later wins: the defaults of `citadel.sections`, `$CITADEL_HOME/config/global/citadel.yaml`,
`$CITADEL_HOME/config/services/api-gateway/gateway.yaml`, `$CITADEL_HOME/config/secrets/*.yaml` (refused when
others can read them), the environment: `CITADEL_` and the path in capitals joined by two underscores
(`CITADEL_LIMITS__CLIENT__REQUESTS_PER_MINUTE=600`), or the same with `_FILE` for a file that holds the value. What a
running `bin/run` was started with counts for commands beside it too, less than their own environment.
"""

import difflib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from citadel.sections import Config, ConfigError, Section

ROOT = Path(__file__).resolve().parent.parent
YAML_FILES = ("config/global/citadel.yaml", "config/services/api-gateway/gateway.yaml")

# Addresses have the names that every platform gives them, without our prefix.
PLAIN_NAMES = {"DATABASE_URL": "database_url", "REDIS_URL": "redis_url", "REDIS_CACHE_URL": "redis_cache_url"}
NO_SETTINGS = frozenset({"CITADEL_HOME", "CITADEL_API_KEY"})
"""The latter is what a client of Citadel proves itself with: bin/manage agent is one."""
VARIABLE = "environment "
"""Begins the place of a value that came from a variable, whose name follows."""
SECRET_LEAVES = frozenset(
    {"database_url", "redis_url", "redis_cache_url", "security.secret_key", "console.providers"}  # with their secrets
)


def home_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`CITADEL_HOME`, absolute; `var` in the project when it is not set."""
    return Path(environ.get("CITADEL_HOME") or ROOT / "var").expanduser().absolute()


@cache
def load() -> Config:
    """This process's configuration, read once. ConfigError says what is wrong with it and where."""
    return read(os.environ)[0]


def read(environ: Mapping[str, str], *, told: bool = True) -> tuple[Config, dict[str, str]]:
    """Gives the tree and, for each dotted path that isn't a default, the place it came from; ConfigError.

    Without TOLD what bin/run has left in `run/` does not count: addresses, and what it was started with.
    """
    home = home_folder(environ)
    merged: dict[str, Any] = {}
    for above, holds in _mappings().items():
        for path, value in _leaves(holds.default, above):
            _put(merged, path, value)
    origins = {} if home == ROOT / "var" else {"home": f"{VARIABLE}CITADEL_HOME"}
    for place, values in _readable(_layers(home, environ, told)):
        for path, value in _leaves(values):
            _check_known(path, place)
            if _is_section(path) or _is_mapping(path):  # one with all of its lines commented out is null
                _check_empty(path, place, value)
                continue
            _put(merged, path, value)
            origins[".".join(path)] = place
    try:
        return Config.model_validate({**merged, "home": home}), origins
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, origins) for problem in error.errors())) from None


def _readable(layers: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield from layers
    except PermissionError as error:
        remedy = "be the user who started Citadel (su, sudo -u)"
        raise ConfigError(f"{error.filename}: can't be read ({error.strerror}); {remedy}") from None


def make_secret(home: Path) -> None:
    """Writes a fresh secret key to `config/secrets/citadel.yaml`, for its owner alone, unless a file is there."""
    folder = home / "config" / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.glob("*.yaml")):
        return
    draft = folder / ".citadel.yaml.new"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"security:\n  secret_key: {secrets.token_urlsafe(48)}\n")
    draft.rename(folder / "citadel.yaml")


def outspoken(environ: Mapping[str, str]) -> dict[str, str]:
    """Of these variables those that are settings and no secrets, nor lead to files, as those of secrets do."""
    paths = {name: ".".join(_variable_path(name)) for name in environ if not name.endswith("_FILE")}
    return {name: environ[name] for name, path in paths.items() if path and path not in SECRET_LEAVES}


def unread(home: Path) -> list[Path]:
    """Files of YAML among the settings that nobody reads, by a name or place that is not theirs."""
    folder = home / "config"
    read = {home / name for name in YAML_FILES} | set((folder / "secrets").glob("*.yaml"))
    return sorted(path for ending in ("yaml", "yml") for path in folder.rglob(f"*.{ending}") if path not in read)


def shown(config: Config, origins: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Rows of (path, value, origin) for people, secrets hidden."""
    for path, value in _leaves(config.model_dump(mode="json", by_alias=True)):
        name = ".".join(path)
        text = "(hidden)" if name in SECRET_LEAVES and value else json.dumps(value)
        yield name, text, origins.get(name, "default")


def _layers(home: Path, environ: Mapping[str, str], told: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    services = home / "run" / "services.json"
    if told and services.is_file():
        yield str(services), _rename(json.loads(services.read_text()))
    for name in YAML_FILES:
        if (home / name).is_file():
            yield str(home / name), _yaml(home / name)
    for path in sorted((home / "config" / "secrets").glob("*.yaml")):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path}: others can read this file of secrets; run: chmod 600 {path}")
        yield str(path), _yaml(path)
    started_with = home / "run" / "environment.json"
    if told and started_with.is_file():
        for _, values in _environment(json.loads(started_with.read_text())):
            yield "environment of the running Citadel", values
    yield from _environment(environ)


def _rename(addresses: Mapping[str, str]) -> dict[str, Any]:
    return {PLAIN_NAMES[name]: value for name, value in addresses.items() if name in PLAIN_NAMES}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        # No word of the error's own: it quotes the file, where secrets stand.
        why = "a tab, where YAML wants spaces" if _is_tab(error) else "look for quotes, colons and indentation"
        raise ConfigError(f"{path}{_mark(error)}: this is not YAML; {why}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the file must hold keys and values, not a {type(values).__name__}")
    return values


def _is_tab(error: Exception) -> bool:
    return "character '\\t'" in str(getattr(error, "problem", ""))


def _mark(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _environment(environ: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, text in sorted(environ.items()):
        path = _variable_path(name)
        if not path:
            continue
        value = _from_file(name, text) if name.endswith("_FILE") else text
        nested: Any = value if path[-1].endswith(("_url", "_key")) else _scalar(value, tuple(path))
        for key in reversed(path):
            nested = {key: nested}
        yield f"{VARIABLE}{name}", nested


def _variable_path(name: str) -> list[str]:
    """The path of the setting that an environment variable sets; empty when it sets none."""
    bare = name.removesuffix("_FILE")
    if bare in PLAIN_NAMES:
        return [PLAIN_NAMES[bare]]
    if bare.startswith("CITADEL_") and bare not in NO_SETTINGS:
        return bare.removeprefix("CITADEL_").lower().split("__")
    return []


def _from_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"environment {name}: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"environment {name}: {path} is no text in UTF-8") from None


def _scalar(text: str, path: tuple[str, ...]) -> Any:
    """Lists and numbers in the environment are written as in YAML, and so is a mapping where the setting at `path` is
    one; anything else is text.
    """
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter for what looks like a date
        return text
    is_meant = isinstance(value, (bool, int, float, list)) or (isinstance(value, dict) and _is_mapping(path))
    return value if is_meant else text


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _check_known(path: tuple[str, ...], place: str) -> None:
    name, known = ".".join(path), _paths(Config)
    if holds := _mappings().get(path[:-2]):
        if path[-1] in holds.settings:
            return
        known = tuple(".".join((*path[:-1], setting)) for setting in holds.settings)
    elif _is_mapping(path):
        return
    is_nested = not any("." in key for key in path)
    if is_nested and (name in known or _is_section(path)):
        return
    if name in known:
        raise ConfigError(f"{place}: {name!r} is written as '{_in_yaml(name)}'")
    meant = [setting for setting in (*known, *_sections()) if setting.endswith(f".{name}")]
    meant = meant or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {' or '.join(_as_written_at(place, setting) for setting in meant)}?" if meant else ""
    raise ConfigError(f"{place}: unknown key {name!r}{hint}")


def _in_yaml(name: str) -> str:
    """How a setting is written of which somebody has written the path as one key."""
    *above, last = name.split(".")
    return "".join(f"{part}: {{" for part in above) + f"{last}: …" + "}" * len(above)


def _as_written_at(place: str, name: str) -> str:
    """How the setting NAME is written there: in the environment it is a variable."""
    if not place.startswith(VARIABLE):
        return repr(name)
    plain = {path: variable for variable, path in PLAIN_NAMES.items()}
    variable = plain.get(name) or f"CITADEL_{name.upper().replace('.', '__')}"
    return f"{variable}_FILE" if place.endswith("_FILE") else variable


@cache
def _sections() -> tuple[str, ...]:
    return tuple(dict.fromkeys(known.rpartition(".")[0] for known in _paths(Config) if "." in known))


def _is_section(path: tuple[str, ...]) -> bool:
    return any(known.startswith(".".join((*path, ""))) for known in _paths(Config))


def _check_empty(path: tuple[str, ...], place: str, value: Any) -> None:
    if value is not None and value != {}:
        raise ConfigError(f"{place}: {'.'.join(path)} must hold keys and values, not a {type(value).__name__}")


def _is_mapping(path: tuple[str, ...]) -> bool:
    """Whether keys belong there whose names who sets them gives, or what one of these holds."""
    return path in _mappings() or path[:-1] in _mappings()


class _Holds(NamedTuple):
    settings: tuple[str, ...]
    default: dict[str, Any]


@cache
def _mappings() -> Mapping[tuple[str, ...], _Holds]:
    """Settings that hold more settings under names that are given to them; what these are called, and what is usual."""
    return dict(_find_mappings(Config))


def _find_mappings(section: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Holds]]:
    for name, field in section.model_fields.items():
        path = (*above, field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _find_mappings(field.annotation, path)
        elif get_origin(field.annotation) is dict:
            held: type[BaseModel] = get_args(field.annotation)[1]
            usual = {key: value.model_dump(exclude_unset=True) for key, value in field.default.items()}
            yield path, _Holds(tuple(held.model_fields), usual)


@cache
def _paths(section: type[BaseModel], above: str = "") -> tuple[str, ...]:
    paths: list[str] = []
    for name, field in section.model_fields.items():
        path = f"{above}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            paths.extend(_paths(field.annotation, f"{path}."))
        elif path != "home":
            paths.append(path)
    return tuple(paths)


def _explain(problem: Any, origins: Mapping[str, str]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    wrong = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "tuple_type":
        wrong = f"it must be a list, such as {_as_list(problem['input'])}"
    return f"{origins.get(path, 'configuration')}: {path}: {wrong}"


def _as_list(value: Any) -> str:
    """How a list is written of what stands where one should."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
    return json.dumps(parts, default=str)
