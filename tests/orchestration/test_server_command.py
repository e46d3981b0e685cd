"""`bin/manage server`: what is done to the registry is so in the running worker within a second."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import aiohttp
import pytest
from django.core.management import CommandError

from tests.command import call, manage
from tests.embedded.conftest import eventually
from tests.fleet.backend.config import Kind
from tests.fleet.control import Fleet
from tests.fleet.record import Exchange
from tests.held_up import HELD_UP
from tests.instance import Instance

LENGTH = {"context_length": 4096}
CAPABLE = {"capabilities": ["chat", "completion", "json_schema", "tools"]}
TOLD: dict[Kind, dict[str, object]] = {"openai": {}, "vllm": LENGTH, "llamacpp": LENGTH, "ollama": LENGTH | CAPABLE}


@pytest.fixture
def server_id(citadel: Instance, model: str) -> Iterator[str]:
    """An id that is free, and free again afterwards."""
    yield f"cli-{model}"
    citadel.remove(f"cli-{model}")


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A file with a server's key, which is its owner's alone."""
    file = tmp_path / "key"
    file.write_text("secret\n")
    file.chmod(0o600)
    return str(file)


async def served(http: aiohttp.ClientSession, name: str) -> dict[str, object] | None:
    """What the list of models tells of a model's servers, None where there is none."""
    async with http.get(f"/v1/models/{name}") as answer:
        return (await answer.json())["citadel"] if answer.status == 200 else None


async def within_a_second(http: aiohttp.ClientSession, name: str, expected: dict[str, object] | None) -> None:
    begun = time.monotonic()
    while (found := await served(http, name)) != expected:
        assert time.monotonic() - begun < 1 + HELD_UP, f"still {found}"


@pytest.mark.parametrize("kind", TOLD)
async def test_a_server_says_itself_which_models_it_has(
    citadel: Instance, http: aiohttp.ClientSession, model: str, server_id: str, kind: Kind
) -> None:
    names = [f"{model}:latest", f"org/{model}-b"]
    with Fleet.start(kind=kind, models=names, context_length=4096) as server:
        added = call("server", "add", server_id, server.url)
        assert f"{server_id}\tactive\thealthy\t{kind}\t{server.url}\t" in call("server", "list")
        told = TOLD[kind]
        one = model if kind == "ollama" else names[0]
        for name in names:
            alias = {"alias_of": one} if one != name == names[0] else {}
            await within_a_second(http, name, {"servers": [server_id], **told, **alias})
        assert added == f"{server_id}: {server.url} serves {', '.join(sorted([one, names[1]]))}\n"
        async with http.post("/v1/completions", json={"model": model, "prompt": "a"}) as answer:
            assert answer.status == 200, "Ollama's habit of leaving out :latest"
        call("server", "remove", server_id)
        for name in names:
            await within_a_second(http, name, None)


async def test_the_list_says_who_is_out_and_why(
    citadel: Instance, http: aiohttp.ClientSession, model: str, server_id: str
) -> None:
    assert call("server", "list").startswith("SERVER\tSTATE\tHEALTH\tKIND\tADDRESS\tMODELS\n")
    with Fleet.start(models=[model]) as server:
        call("server", "add", server_id, server.url)
        server.kill()
        citadel.settle()
        async with http.post("/v1/completions", json={"model": model, "prompt": "a"}) as answer:
            assert answer.status == 503
        deadline = time.monotonic() + 3 + HELD_UP
        while f"{server_id}\tactive\tunhealthy (traffic: refused)\t" not in call("server", "list"):
            assert time.monotonic() < deadline


async def test_refresh_finds_what_is_new_and_forgets_what_is_gone(
    citadel: Instance, http: aiohttp.ClientSession, model: str, server_id: str
) -> None:
    with Fleet.start(models=[f"{model}-old", f"{model}-kept"]) as server:
        call("server", "add", server_id, server.url)
        server.kill()
        server._options[server._options.index(f"{model}-old")] = f"{model}-new"
        server.restart()
        assert call("server", "refresh", server_id) == f"{server_id}: {model}-kept, {model}-new\n"
        for name, expected in (("old", None), ("kept", {"servers": [server_id]}), ("new", {"servers": [server_id]})):
            await within_a_second(http, f"{model}-{name}", expected)


async def test_adding_again_brings_the_entry_up_to_date(
    citadel: Instance, http: aiohttp.ClientSession, model: str, server_id: str, key: str
) -> None:
    with Fleet.start(models=[model], api_key="secret") as server:
        for name in (f"{model}-wrong", model):
            options = ("--model", name, "--weight", "7", "--api-key-file", key)
            call("server", "add", server_id, f"{server.url}/v1/", *options)
        await within_a_second(http, f"{model}-wrong", None)
        await within_a_second(http, model, {"servers": [server_id]})
        async with http.post("/v1/completions", json={"model": model, "prompt": "a"}) as answer:
            assert answer.status == 200, "the server's key, and its address without the /v1 that people write"
        listed = call("server", "list").splitlines()
        assert [line for line in listed if line.startswith(server_id)] == [
            f"{server_id}\tactive\thealthy\topenai\t{server.url}\t{model}"
        ]
        assert not [line for line in listed if "secret" in line]


def test_what_is_not_said_again_stays_and_a_key_stays_at_its_address(
    citadel: Instance, model: str, server_id: str, key: str
) -> None:
    from apps.orchestration.models import Server

    def entry() -> tuple[int, int, str, str]:
        row = Server.objects.get(server_id=server_id)
        return row.weight, row.max_concurrent, row.api_key, row.kind

    with Fleet.start(models=[model], api_key="secret") as server:
        call("server", "add", server_id, server.url, "--weight", "7", "--max-concurrent", "3", "--api-key-file", key)
        call("server", "add", server_id, server.url, "--model", model)
        assert entry() == (7, 3, "secret", "openai")
        call("server", "add", server_id, server.url.replace("127.0.0.1", "localhost"), "--model", model)
        assert entry() == (7, 3, "", ""), "without its key it can't be asked what it is"
        call("server", "add", server_id, server.url, "--api-key-file", key, "--weight", "1", "--max-concurrent", "0")
        assert entry() == (1, 0, "secret", "openai")


def test_a_key_comes_by_standard_input_too(
    citadel: Instance, model: str, server_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.orchestration.models import Server

    words = ("server", "add", server_id, "http://127.0.0.1:1", "--model", model, "--api-key-file", "-")
    for typed, kept in (("secret\n", "secret"), ("", "")):
        monkeypatch.setattr("sys.stdin", StringIO(typed))
        call(*words)
        assert Server.objects.get(server_id=server_id).api_key == kept


@pytest.mark.parametrize(
    ("content", "mode", "about"),
    [(b"a\r\nb: c", 0o600, "visible ASCII"), (b"secret", 0o644, "others can read this key"), (b"\xff", 0o600, "UTF-8")],
)
def test_a_file_that_is_no_good_for_a_key(
    citadel: Instance, server_id: str, key: str, content: bytes, mode: int, about: str
) -> None:
    Path(key).write_bytes(content)
    Path(key).chmod(mode)
    with pytest.raises(CommandError, match=about):
        call("server", "add", server_id, "http://127.0.0.1:1", "--model", "m", "--api-key-file", key)
    assert server_id not in call("server", "list")


def asked_what_it_has(server: Fleet) -> list[Exchange]:
    return [
        seen
        for seen in server.log(probes=True)
        if seen.path == "/v1/models" and seen.headers["user-agent"].endswith("(discovery)")
    ]


def test_a_drain_while_the_server_is_asked_stands(citadel: Instance, model: str, server_id: str) -> None:
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server, ThreadPoolExecutor() as executor:
        call("server", "add", server_id, server.url)
        server.behave("slow_start 1500", path="/v1/models")
        before = len(asked_what_it_has(server))
        again = executor.submit(manage, citadel.home, "server", "add", server_id, server.url)
        eventually(lambda: len(asked_what_it_has(server)) > before, 20)
        call("server", "drain", server_id)
        assert not again.done()
        assert again.result().returncode == 0
    assert Server.objects.get(server_id=server_id).state == "draining"


@pytest.mark.parametrize("behaviour", ["error 500", "error 401", "die request rst", "json_is null"])
def test_a_server_that_can_not_be_asked_is_not_added_unless_its_models_are_named(
    citadel: Instance, model: str, server_id: str, behaviour: str
) -> None:
    with Fleet.start(models=[model]) as server:
        server.behave(behaviour, path="/v1/models")
        with pytest.raises(CommandError, match=f"^{server.url}.*; name its models with --model"):
            call("server", "add", server_id, server.url)
        assert server_id not in call("server", "list")
        assert model in call("server", "add", server_id, server.url, "--model", model)


def test_a_refresh_that_fails_names_no_option_that_it_does_not_have(
    citadel: Instance, model: str, server_id: str
) -> None:
    with Fleet.start(models=[model]) as server:
        call("server", "add", server_id, server.url)
        server.behave("error 500", path="/v1/models")
        with pytest.raises(CommandError, match="answered 500") as failure:
            call("server", "refresh", server_id)
        assert "--model" not in str(failure.value)
        assert model in call("server", "list"), "what was known stays"


@pytest.mark.parametrize("options", [(), ("--model", "m")])
def test_citadel_does_not_become_a_server_of_its_own(
    citadel: Instance, server_id: str, options: tuple[str, ...]
) -> None:
    refusal = f"^{citadel.url} leads back to this Citadel itself, which can't be a server of its own fleet$"
    with pytest.raises(CommandError, match=refusal):
        call("server", "add", server_id, citadel.url, *options)
    assert server_id not in call("server", "list")


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (("add", "bad id", "http://127.0.0.1:1"), "letters, digits"),
        (("add", "x", "127.0.0.1:1"), "is not an address"),
        (("add", "x", "ftp://127.0.0.1"), "is not an address"),
        (("add", "x", "http://user:word@127.0.0.1:1"), "api_key"),
        (("add", "x", "http://127.0.0.1:99999"), "is not an address"),
        (("add", "x", "http://127.0.0.1:0"), "is not an address"),
        (("add", "x", "http://[::1"), "is not an address"),
        (("add", "x", "http://a\u2100b:1"), "is not an address"),
        (("add", "x", "http://127.0.0.1:1", "--weight", "0", "--model", "m"), "1"),
        (("add", "x", "http://127.0.0.1:1", "--max-concurrent", "-1", "--model", "m"), "0"),
        (("add", "x", "http://127.0.0.1:1", "--model", "m" * 300), "255"),
        (("add", "x", "http://127.0.0.1:1", "--kind", "toaster"), "toaster"),
        (("add", "x", "http://127.0.0.1:1", "--model", "m", "--api-key-file", "/nowhere"), "/nowhere: No such file"),
        (
            ("add", "x", "http://127.0.0.1:1", "--model", "m", "--api-key", "secret"),
            "unrecognized arguments: --api-key secret",
        ),
        (("remove", "nobody"), "no server 'nobody'"),
        (("refresh", "nobody"), "no server 'nobody'"),
        (("drain", "nobody"), "no server 'nobody'"),
        (("add", "x", "http://169.254.169.254"), "may not be called"),
        (("add", "x", "http://[::ffff:169.254.169.254]:80", "--model", "m"), "may not be called"),
        (("add", "x", "http://8.8.8.8", "--model", "m"), "may not be called.*fleet_networks"),
        (("add", "x", "http://127.0.0.1:1/a b", "--model", "m"), "a path like"),
        (("add", "x", "http://a_b-:1", "--model", "m"), "a host's name"),
    ],
)
def test_what_is_wrong_is_told(citadel: Instance, words: tuple[str, ...], about: str) -> None:
    with pytest.raises(CommandError, match=about):
        call("server", *words)


async def test_beside_the_running_citadel(
    citadel: Instance, http: aiohttp.ClientSession, model: str, server_id: str
) -> None:
    with Fleet.start(models=[model]) as server:
        added = manage(citadel.home, "server", "add", server_id, server.url)
        await within_a_second(http, model, {"servers": [server_id]})
        assert (added.returncode, added.stdout, added.stderr) == (0, f"{server_id}: {server.url} serves {model}\n", "")


def test_each_change_of_state_says_what_is_now(citadel: Instance, model: str, server_id: str) -> None:
    call("server", "add", server_id, "http://127.0.0.1:1", "--model", model)
    for verb, state in (("drain", "draining"), ("disable", "disabled"), ("enable", "active"), ("remove", "removed")):
        said = call("server", verb, server_id)
        assert said.startswith(f"{server_id}: {state}")
        assert said.count("\n") == 1


@pytest.mark.parametrize("named", [False, True])
def test_adding_anew_takes_back_no_registrations_word(
    citadel: Instance, model: str, server_id: str, named: bool
) -> None:
    from apps.orchestration.models import ServedModel, Server

    with Fleet.start(models=[model]) as server:
        call("server", "add", server_id, server.url, "--model", f"{model}-gone")
        row = Server.objects.get(server_id=server_id)
        ServedModel.objects.create(server=row, name=f"{model}-own", named_by="registration")
        call("server", "add", server_id, server.url, *(["--model", model] if named else []))
        words = {model: "operator" if named else "", f"{model}-own": "registration"}
        assert dict(row.models.values_list("name", "named_by")) == words


def test_an_address_that_another_server_has_is_noted(citadel: Instance, model: str, server_id: str) -> None:
    with Fleet.start(models=[model]) as server, citadel.registered(server.url, [model]) as other:
        added = manage(citadel.home, "server", "add", server_id, f"{server.url}/v1")
    assert (added.returncode, added.stdout) == (0, f"{server_id}: {server.url} serves {model}\n")
    assert added.stderr == f"Note: the same address as {other}.\n"


def test_another_address_of_a_known_server_is_noted(citadel: Instance, model: str, server_id: str) -> None:
    with Fleet.start(models=[model]) as first, Fleet.start(models=[model]) as second:
        said = [
            manage(citadel.home, "server", "add", server_id, url).stderr for url in (first.url, first.url, second.url)
        ]
    assert said[:2] == ["", ""]
    assert said[2] == f"Note: {server_id} was there already; its address is changed from {first.url}.\n"


def test_a_server_that_is_added_elsewhere_leaves_what_was_found_and_is_told(
    citadel: Instance, model: str, server_id: str
) -> None:
    from apps.orchestration.models import Event, ServedModel, Server

    urls = [f"http://127.0.0.1:{port}" for port in (1, 2, 2)]
    for url in urls:
        call("server", "add", server_id, url, "--model", model)
        ServedModel.objects.filter(server__server_id=server_id).update(named_by="", context_length=77)
    assert Server.objects.get(server_id=server_id).models.get().context_length == 77
    call("server", "add", server_id, "http://127.0.0.1:3", "--model", model)
    assert Server.objects.get(server_id=server_id).models.get().context_length is None
    told = Event.objects.filter(server_id=server_id, type="server_registered").order_by("id")
    assert [one.data["url"] for one in told] == [*urls[:2], "http://127.0.0.1:3"]


def test_what_is_no_model_server_is_added_and_noted(citadel: Instance, server_id: str) -> None:
    """As with an address that is mistyped, at which some web page is."""
    with Fleet.start(models=["m"]) as server:
        page = f"{server.url}/admin"
        added = manage(citadel.home, "server", "add", server_id, page)
        wanted = manage(citadel.home, "server", "add", server_id, page, "--kind", "http")
    note = (
        f"Note: {page} answers, but not as a model server: no list of models at {page}/v1/models or {page}/api/tags. "
        f"It is registered as a plain web server. Where the address is wrong: bin/manage server add {server_id} with "
        f"the right one, or bin/manage server remove {server_id}; where it is meant: --kind http.\n"
    )
    assert (added.returncode, added.stdout) == (0, f"{server_id}: {page} serves no models\n")
    assert added.stderr == note
    assert (wanted.returncode, wanted.stderr) == (0, "")


def test_a_refused_command_ends_with_one_and_a_sentence(citadel: Instance) -> None:
    refused = manage(citadel.home, "server", "remove", "nobody")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "CommandError: no server 'nobody'; see: bin/manage server list\n"


def test_a_server_that_waited_for_approval_is_asked_for_its_models(
    citadel: Instance, model: str, server_id: str
) -> None:
    """Nobody has asked it before, though it has said what it is."""
    from apps.orchestration.models import Server

    with Fleet.start(models=[model]) as server:
        row = Server(server_id=server_id, hostname=server.host, port=server.port, kind="openai", state="pending")
        row.save()
        assert f"active, at {server.url}, it gets traffic" in call("server", "enable", server_id)
        assert [held.name for held in row.models.all()] == [model]


def test_one_that_is_enabled_and_leads_back_here_is_out_again(citadel: Instance, server_id: str) -> None:
    from apps.orchestration.models import Server

    port = int(citadel.url.rpartition(":")[2])
    Server.objects.create(
        server_id=server_id, hostname="127.0.0.1", port=port, state="pending", kind="openai", registered_by="k"
    )
    with pytest.raises(CommandError, match="leads back to this Citadel itself"):
        call("server", "enable", server_id)
    assert Server.objects.get(server_id=server_id).state == "disabled"


def test_one_that_is_enabled_and_does_not_answer_is_noted(citadel: Instance, server_id: str) -> None:
    call("server", "add", server_id, "http://127.0.0.1:1", "--model", "m")
    call("server", "disable", server_id)
    enabled = manage(citadel.home, "server", "enable", server_id)
    assert (enabled.returncode, enabled.stdout.partition(",")[0]) == (0, f"{server_id}: active")
    assert enabled.stderr.startswith("Note: http://127.0.0.1:1/")


def test_a_server_that_is_removed_is_forgotten_on_the_board(citadel: Instance, model: str, server_id: str) -> None:
    """Added again under its id it begins with a clean record."""
    import redis

    from apps.orchestration.health.board import SAY

    call("server", "add", server_id, "http://127.0.0.1:1", "--model", model)
    call("server", "disable", server_id)  # so that no probe says anything
    with redis.Redis.from_url(citadel.redis_url) as board:
        board.eval(SAY.text, 0, server_id, "webhook", "unhealthy", "hot", "{}", "[]", "-1")
        board.sadd("fleet:exceeded", f"{server_id} cpu", f"{server_id}-b cpu")
        assert f"{server_id}\tdisabled\tunhealthy" in call("server", "list")
        call("server", "remove", server_id)
        assert not board.sismember("fleet:exceeded", f"{server_id} cpu")
        assert board.srem("fleet:exceeded", f"{server_id}-b cpu")
    call("server", "add", server_id, "http://127.0.0.1:1", "--model", model)
    assert f"{server_id}\tactive\thealthy" in call("server", "list")
