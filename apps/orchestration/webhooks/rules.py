"""What a webhook's reports make Citadel do, by the rules of its type. Pure."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from citadel.errors import BadRequest

Report = Mapping[str, Any]

MOST_REPORTS = 1000
LONGEST_SERVER_ID = 64


class Rule(NamedTuple):
    """`match` says a pattern for each path; all must fit. `server` are the places of the server's id."""

    match: Mapping[str, str]
    server: Sequence[str]
    action: str


class Act(NamedTuple):
    """What is to be done with a server. Where there is a `mark`, it is done once. `cause` is what the reports of one
    trouble share, from its beginning to its end.
    """

    server_id: str
    action: str
    mark: str = ""
    cause: str = ""


def reports(body: Report, items: str, fields: Sequence[str]) -> list[Report]:
    """The reports of a body, each with all `fields`; BadRequest names what is missing."""
    found = [body] if not items else _items(body, items)
    for number, report in enumerate(found):
        for path in fields:
            if look_up(report, path) is None:
                param = f"{items}[{number}].{path}" if items else path
                raise BadRequest(f"Missing required field '{param}'.", param=param, code="missing_required_parameter")
    return found


def acts(
    found: Iterable[Report], rules: Sequence[Rule], identity: Sequence[str], cause: Sequence[str] = ()
) -> list[Act]:
    """What each report leads to; those that no rule fits lead to nothing."""
    decided = ((report, decide(report, rules)) for report in found)
    return [act._replace(mark=mark(report, identity), cause=mark(report, cause)) for report, act in decided if act]


def decide(report: Report, rules: Sequence[Rule]) -> Act | None:
    """The act of the first rule that fits and says a server."""
    for rule in rules:
        if all(_fits(look_up(report, path), pattern) for path, pattern in rule.match.items()):
            server = next((name for path in rule.server if (name := _name(look_up(report, path)))), None)
            if server:
                return Act(server, rule.action)
    return None


def mark(report: Report, identity: Sequence[str]) -> str:
    """What tells a report from all others; empty where it does not say all that it is known by."""
    values = [look_up(report, path) for path in identity]
    if not values or any(value is None for value in values):
        return ""
    return digest("report", values)


def digest(*what: Any) -> str:
    """A mark, of fixed length."""
    return hashlib.sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()


def look_up(report: Any, path: str) -> Any:
    """What stands at a path such as `labels.server_id`, where a key may have dots itself; None where nothing does."""
    if not isinstance(report, Mapping):
        return None
    if path in report:
        return report[path]
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        inner = report.get(".".join(parts[:length]))
        if inner is not None and (found := look_up(inner, ".".join(parts[length:]))) is not None:
            return found
    return None


def _items(body: Report, items: str) -> list[Report]:
    found = look_up(body, items)
    if found is None:
        raise BadRequest(f"Missing required field '{items}'.", param=items, code="missing_required_parameter")
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise BadRequest(f"Invalid value for '{items}': it is a list of objects.", param=items, code="invalid_type")
    if len(found) > MOST_REPORTS:
        raise BadRequest(f"Invalid value for '{items}': at most {MOST_REPORTS} at once.", param=items)
    return found


def _fits(value: Any, pattern: str) -> bool:
    return isinstance(value, str | int | float) and fnmatchcase(_text(value), pattern)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _name(value: Any) -> str:
    """A server's id, if that is what it could be."""
    return value if isinstance(value, str) and len(value) <= LONGEST_SERVER_ID and "\0" not in value else ""
