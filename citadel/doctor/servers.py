"""The fleet's servers: each is asked what it is, all at once, and the board how it finds them."""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import redis
from django.db import DatabaseError, connection

from citadel import hop
from citadel.addresses import AddressRefused, CheckedTransport, of_fleet
from citadel.doctor.finding import Finding, broken, doubtful, well
from citadel.doctor.patient import PATIENCE, Asleep, Patient, Unavailable
from citadel.sections import Config

if TYPE_CHECKING:
    from apps.orchestration.health.conditions import Record
    from apps.orchestration.models import Server

AT_ONCE = 32
REFRESH = "bin/manage server refresh {0}"
NAME_ANEW = "it was named, so it stays: bin/manage server add {0} {0.url} names what it has, and forgets the others"
NAMED_ITSELF = "its own registration names it, so it stays until one no longer does: mend what {0} registers with"
LISTLESS = "well where {0} has no such list; else say where it is: models_endpoint, in the console or the fleet file"
MEND = "is it running, and is its address right? bin/manage server list; out of the way: bin/manage server disable {0}"
RETURN: Mapping[str, str] = MappingProxyType(
    {
        "probe": "its health page is slow or says no: look at its log; it comes back once that is well for a while",
        "traffic": "requests fail there or are slow: look at its log; it comes back once they are answered",
        "heartbeat": "it does not tell any more that it lives: does its agent still run?",
        "webhook": "a webhook said so: its next word, or bin/manage server enable {0}, brings it back",
    }
)
"""What brings a server back, by who found that it isn't well."""
RELIEVE = "it has more to do than it can: another server with its models, or fewer at once there by its limit"
GO_ON = "back to work: bin/manage server enable {0}; gone for good: bin/manage server remove {0}"


def answer(patient: Patient) -> Iterator[Finding]:
    """Those that have work or end it: reachable, of their kind, with the models that the registry has, and not out."""
    rows = _registry(patient)
    if not rows:
        yield doubtful("the registry is empty", "bin/manage server add NAME http://HOST:PORT")
    asked = [row for row in rows if row.state in (row.State.ACTIVE, row.State.DRAINING)]
    idle = [row.server_id for row in rows if row not in asked]
    if idle:
        yield well(f"not asked, since they are disabled or wait for approval: {', '.join(idle)}")
    yield from asyncio.run(_ask_all(asked, patient.config, _board(patient)))


def _registry(patient: Patient) -> "list[Server]":
    patient.set_up_django()
    from apps.orchestration.models import Server

    try:
        return list(Server.objects.prefetch_related("models"))
    except DatabaseError:
        raise Unavailable("the registry's tables can't be read") from None
    finally:
        connection.close()


def _board(patient: Patient) -> "Mapping[str, Record]":
    """How probes, traffic and the servers' own words find them; nothing where Redis is away: another check tells."""
    from apps.orchestration.health.board import HEALTH
    from apps.orchestration.health.conditions import Record

    try:
        told: Mapping[Any, Any] = patient.state.hgetall(HEALTH)
    except (redis.RedisError, OSError, Asleep):
        return {}
    return {name.decode(): msgspec.json.decode(raw, type=Record) for name, raw in told.items()}


async def _ask_all(servers: "list[Server]", config: Config, board: "Mapping[str, Record]") -> list[Finding]:
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(server: "Server") -> list[Finding]:
        async with places:
            finding = await (_ask_plainly if server.kind == server.Kind.HTTP else _ask)(server, config)
        found = [finding]
        record = board.get(server.server_id)
        if finding.level != "broken" and record and (health := _as_found(server, record)):
            found = [health] if finding.level == "ok" else [finding, health]
        return [_draining(server, one) for one in found] if server.state == server.State.DRAINING else found

    return [finding for found in await asyncio.gather(*map(ask, servers)) for finding in found]


def _draining(server: "Server", finding: Finding) -> Finding:
    """What is found of one that goes out of service, perhaps to be stopped: that is its operator's will."""
    if finding.level != "broken":
        return finding
    return doubtful(f"{server} is draining: {finding.what}", GO_ON.format(server))


def _as_found(server: "Server", record: "Record") -> Finding | None:
    """Of one that answers here: whether it gets requests. None where it does."""
    from apps.orchestration.health.examiner import LOADED

    if record.status == "healthy":
        return None
    since = f"{datetime.fromtimestamp(record.since / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    mend = (RELIEVE if record.reason == LOADED else RETURN[record.source]).format(server)
    if record.status == "unhealthy":
        return broken(f"{server} answers, but gets no requests: {record.told} since {since}", mend)
    return doubtful(f"{server} answers, and is {record.told} since {since}", mend)


async def _ask(server: "Server", config: Config) -> Finding:
    from apps.orchestration import discovery
    from apps.orchestration.dialects import DIALECTS

    rows = list(server.models.all())
    try:
        found = await discovery.ask(discovery.place_of(server), config)
    except discovery.DiscoveryFailed as failure:
        if isinstance(failure, discovery.HasNoList) and rows and all(row.named_by for row in rows):
            return doubtful(f"{server} does not list its models, which were named: {failure}", LISTLESS.format(server))
        return broken(f"{server}: {failure}", MEND.format(server))
    if server.kind and found.kind != server.kind:
        return broken(f"{server} is of kind {found.kind}, not {server.kind}", REFRESH.format(server))
    one_name = DIALECTS[found.kind].one_name
    has, known = {model.name for model in found.models}, {one_name(row.name) for row in rows}
    any_name = any(model.any_name for model in found.models)
    has |= {one_name(row.name) for row in rows if any_name and row.named_by}
    if gone := sorted(known - has):
        words = {row.named_by for row in rows if one_name(row.name) in gone}
        return broken(f"{server} does not have {', '.join(gone)}", _cure(words).format(server))
    is_whole = not server.registered_by and {row.named_by for row in rows} == {"operator"}
    if not is_whole and (new := sorted(has - known)):
        return doubtful(f"{server} has also {', '.join(new)}, which the registry does not know", REFRESH.format(server))
    return well(f"{server} answers and has {len(known)} models")


def _cure(words: Collection[str]) -> str:
    """For models that are gone, by whose word the registry has them. A refresh takes away what nobody has named."""
    if "operator" in words:
        return NAME_ANEW
    return NAMED_ITSELF if "registration" in words else REFRESH


async def _ask_plainly(server: "Server", config: Config) -> Finding:
    """Any answer but a failure of its own is one."""
    url = f"{server.url}{server.health_endpoint or '/'}"
    credential = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    try:
        transport, headers = CheckedTransport(of_fleet(config)), hop.introduction(config.secret, "doctor") | credential
        async with httpx.AsyncClient(transport=transport, timeout=PATIENCE, headers=headers) as client:
            status = (await client.get(url)).status_code
    except (httpx.HTTPError, httpx.InvalidURL, AddressRefused) as error:
        return broken(f"{server}: {url} can't be asked: {error or type(error).__name__}", MEND.format(server))
    if status >= 500 or (server.health_endpoint and status >= 400):
        return broken(f"{server}: {url} answers {status}", MEND.format(server))
    without = "" if server.models.all() else ", as a plain web server without models"
    return well(f"{server} answers{without}")
