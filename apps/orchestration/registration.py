"""What a server says of itself, when it registers (in a flat form or a nested one) and with each heartbeat. Pure."""

import re
from collections.abc import Iterable
from itertools import chain, islice
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from apps.orchestration.dialects import FoundModel
from apps.orchestration.dialects.dialect import words
from apps.orchestration.health.conditions import Load
from apps.orchestration.moving import ENDPOINTS, without_version
from citadel.decoding import NO_NUL, decode
from citadel.errors import BadRequest
from citadel.sections import USUAL_PORTS

SERVER_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=NO_NUL)]
Id = Annotated[str, Meta(pattern=SERVER_ID.pattern)]
Share = Annotated[float, Meta(ge=0, le=1)]
Number = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Labels = Annotated[list[Name], Meta(max_length=256)] | dict[str, Any]
Endpoint = Annotated[str, Meta(max_length=512, pattern=r"^[!-~]*$")]
Weight = Annotated[float, Meta(extra_json_schema={"type": "integer", "minimum": 1, "maximum": 1000})]
"""A whole number, which may be written as 1.0."""

LARGEST_LABELS = 32 * 1024
"""Bytes of a server's capabilities, or its services, as JSON."""
COLUMNS = (
    "hostname",
    "port",
    "scheme",
    "kind",
    "role",
    "capabilities",
    "services",
    "weight",
    "max_concurrent",
    "api_key",
    "base_path",
)
UNSAID = frozenset({"role", "capabilities", "services", "weight", "max_concurrent"})
"""Of which a null says nothing; elsewhere it takes away what there is."""

MOST_IGNORED, LONGEST_IGNORED = 20, 64
"""Fields that the answer names, and characters of each."""
LOOKED_THROUGH = 2**20
"""Bytes of a body up to which it is searched for such, which takes 14 ms: longer ones would hold up the worker."""


class NamedModel(Struct):
    """A model that a server names, with what it says of it."""

    name: Name
    context_length: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    capabilities: Annotated[list[Name], Meta(max_length=256)] | None = None


class Details(Struct, kw_only=True):
    """A server, as it tells of itself."""

    id: Id | None = None
    server_id: Id | None = None
    hostname: Annotated[str, Meta(max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")] | UnsetType = UNSET
    port: Annotated[int, Meta(ge=1, le=65535)] | UnsetType = UNSET
    scheme: Literal["http", "https"] | UnsetType = UNSET
    kind: Literal["openai", "ollama", "llamacpp", "vllm", "citadel", "http"] | UnsetType | None = UNSET
    role: Annotated[str, Meta(max_length=100, pattern=NO_NUL)] | UnsetType | None = UNSET
    capabilities: Labels | UnsetType | None = UNSET
    services: Labels | UnsetType | None = UNSET
    models: Annotated[list[Name | NamedModel], Meta(max_length=2000)] | None = None
    weight: Weight | UnsetType | None = UNSET
    max_concurrent: Annotated[int, Meta(ge=0, le=100_000)] | UnsetType | None = UNSET
    api_key: Annotated[str, Meta(max_length=512, pattern="^[!-~]*$")] | UnsetType | None = UNSET
    base_path: Annotated[str, Meta(max_length=200, pattern=r"^(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*$")] | UnsetType = UNSET
    health_endpoint: Endpoint | UnsetType | None = UNSET
    models_endpoint: Endpoint | UnsetType | None = UNSET
    metrics_endpoint: Endpoint | UnsetType | None = UNSET


class Body(Details, kw_only=True):
    """`POST /orchestration/servers/register`: all in one object, or what the server is under `server_info`."""

    server_info: Details | None = None


FLAT = frozenset(Body.__struct_fields__)
NESTED = frozenset(
    {"server_info", "id", "server_id", "models", *ENDPOINTS}
    | {f"server_info.{name}" for name in Details.__struct_fields__}
)
"""The fields that count, in each of the two forms."""


class Registration:
    """One registration, read and whole. `names`: of all its fields, those of `server_info` too."""

    def __init__(self, body: Body, names: Iterable[str] = ()):
        known = NESTED if body.server_info else FLAT
        unknown = (name[:LONGEST_IGNORED] for name in names if name not in known)
        self.ignored = list(islice(unknown, MOST_IGNORED))
        self._inner = body.server_info or body
        self._outer = body
        self._prefix = "server_info." if body.server_info else ""
        self.server_id = self._id()
        for name in ("hostname", "port"):
            if getattr(self._inner, name) is UNSET:
                raise _missing(f"{self._prefix}{name}")
        for name in ("capabilities", "services"):
            self._check_labels(name)
        self._check_weight()

    @classmethod
    def read(cls, body: bytes) -> "Registration":
        """BadRequest names the field that is wrong."""
        read = decode(body, Body)
        if len(body) > LOOKED_THROUGH:
            return cls(read)
        said = decode(body, dict[str, msgspec.Raw])
        inner = decode(bytes(said["server_info"]), dict[str, msgspec.Raw]) if read.server_info else ()
        return cls(read, chain(said, (f"server_info.{name}" for name in inner)))

    @property
    def place(self) -> tuple[str, int]:
        """The host and port at which the server is."""
        return cast("str", self._inner.hostname), cast("int", self._inner.port)

    def fields(self, base_path: str) -> dict[str, Any]:
        """What it says, by the names of the registry's columns. `base_path` is the server's where it says none."""
        said = self._inner.base_path
        base = base_path if said is UNSET else said
        told = {name: getattr(self._inner, name) for name in COLUMNS}
        told = {name: UNSET if name in UNSAID and value is None else value for name, value in told.items()}
        told |= {name: self._endpoint(name, base) for name in ENDPOINTS}
        fields = {name: "" if value is None else value for name, value in told.items() if value is not UNSET}
        return {**fields, **without_version(fields)}

    def found_models(self) -> list[FoundModel] | None:
        """The models that it names, which may be none; None where it says nothing of them."""
        if self._inner.models is None and self._outer.models is None:
            return None
        models = {}
        for model in [*(self._inner.models or ()), *(self._outer.models or ())]:
            named = model if isinstance(model, NamedModel) else NamedModel(model)
            models[named.name] = FoundModel(named.name, named.context_length, "", words(named.capabilities))
        return list(models.values())

    def _id(self) -> str:
        found = self._inner.id or self._inner.server_id or self._outer.id or self._outer.server_id
        if not found:
            raise _missing(f"{self._prefix}id")
        return found

    def _check_labels(self, name: str) -> None:
        """An object's values may be anything that PostgreSQL keeps, within a size."""
        told = getattr(self._inner, name)
        text = msgspec.json.encode(told) if told and told is not UNSET else b""
        if len(text) > LARGEST_LABELS or b"\\u0000" in text:
            reason = f"at most {LARGEST_LABELS} bytes of JSON, without null characters"
            raise BadRequest(f"Invalid value for '{self._prefix}{name}': {reason}.", param=f"{self._prefix}{name}")

    def _check_weight(self) -> None:
        told = self._inner.weight
        if isinstance(told, float):
            if not (told.is_integer() and 1 <= told <= 1000):
                reason = "a whole number from 1 to 1000"
                raise BadRequest(f"Invalid value for '{self._prefix}weight': {reason}.", param=f"{self._prefix}weight")
            self._inner.weight = int(told)

    def _endpoint(self, name: str, base: str) -> Any:
        """A path below the base path, its slash may be left out; a whole address only where it is the server's own."""
        told = getattr(self._outer, name)
        told = getattr(self._inner, name) if told is UNSET else told
        if told is UNSET or not told or told.startswith("/"):
            return told
        if "://" not in told:
            return f"/{told}"
        host = f"[{self._inner.hostname}]" if ":" in str(self._inner.hostname) else self._inner.hostname
        scheme, _, rest = told.partition("://")
        place, _, path = rest.partition("/")
        port = USUAL_PORTS.get(scheme.lower())
        own = {f"{host}:{self._inner.port}".lower(), *([str(host).lower()] if port == self._inner.port else ())}
        if port and place.lower() in own:
            return _below(base, name, f"/{path}")
        raise BadRequest(f"Invalid value for '{name}': a path like /health, on the server itself.", param=name)


class LoadMetrics(Struct):
    """What a server has to do; shares from 0 to 1."""

    cpu: Share | None = None
    memory: Share | None = None
    gpu: Share | None = None
    in_flight: Number | None = None
    queue: Number | None = None


class Heartbeat(Struct):
    """`POST /orchestration/servers/{id}/heartbeat`; an empty one says no more than that the server lives."""

    load_metrics: LoadMetrics | None = None
    url: Annotated[str, Meta(max_length=512)] = ""
    """Its address, as the answer to its registration tells it: a 409 where the entry is another's by now."""

    @property
    def load(self) -> Load:
        """As the board has it."""
        told = self.load_metrics or LoadMetrics()
        return Load(told.cpu, told.memory, told.gpu, told.in_flight, told.queue)


def _below(base: str, name: str, path: str) -> str:
    """What a whole address has after the base path, which stands before every path that the server is asked for."""
    if not f"{path}/".startswith(f"{base}/"):
        raise BadRequest(f"Invalid value for '{name}': an address below the base path {base}.", param=name)
    return path.removeprefix(base) or "/"


def _missing(name: str) -> BadRequest:
    return BadRequest(f"Missing required field '{name}'.", param=name, code="missing_required_parameter")
