"""`bin/manage fleet export|diff|apply`, on a database of its own."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from django.core.management import CommandError
from django.db import connection

from apps.orchestration.fleet_file import rows
from apps.orchestration.models import Alias, Event, Hold, Hook, ModelClass, ServedModel, Server
from citadel.addresses import Addresses
from tests.command import call
from tests.fleet.control import Fleet
from tests.instance import ROOT, Instance

EXAMPLE = ROOT / "deploy" / "examples" / "fleet.yaml"

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fleet.yaml"


def apply(file: Path, text: str, *options: str) -> str:
    file.write_text(text)
    return call("fleet", "apply", str(file), *options)


def diff(file: Path, *options: str) -> tuple[int, str]:
    """Exit code and output."""
    try:
        return 0, call("fleet", "diff", str(file), *options)
    except SystemExit as end:
        return int(str(end.code)), ""


def server(name: str = "one", **more: object) -> str:
    fields = {"hostname": "h", "port": 80, "models": "[m]", **more}
    return f"servers:\n  {name}:\n" + "".join(f"    {field}: {value}\n" for field, value in fields.items())


def test_the_example_applies_on_a_fresh_database_and_exports_back_the_same(file: Path) -> None:
    said = call("fleet", "apply", str(EXAMPLE))
    assert "+ server llm-01" in said
    call("fleet", "export", str(file))
    assert _content(file.read_text()) == _content(EXAMPLE.read_text())
    assert diff(EXAMPLE) == diff(file) == (0, "No difference.\n")
    assert diff(EXAMPLE, "--prune") == (0, "No difference.\n")


def _content(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_the_example_is_the_organisation() -> None:
    call("fleet", "apply", str(EXAMPLE))
    models = {row.server_id: {held.name for held in row.models.all()} for row in Server.objects.all()}
    assert models == {
        "llm-01": {"phi3", "openchat", "mixtral", "nous-hermes2", "nomic-embed-text"},
        "llm-02": {"yi-34b", "deepcoder-14b", "imp-v1-3b", "deepseek-r1"},
        "web-01": set(),
        "metrics-01": set(),
    }
    assert Server.objects.get(server_id="llm-02").capabilities == ["business_models"]
    metrics = Server.objects.get(server_id="metrics-01")
    assert (metrics.kind, bool(metrics.services)) == ("http", True)


def test_applying_twice_is_applying_once(file: Path) -> None:
    assert apply(file, server()).endswith("Done.\n")
    row = Server.objects.get()
    assert apply(file, server()) == "No difference.\n"
    assert Server.objects.get().pk == row.pk
    assert [event.type for event in Event.objects.all()] == ["server_registered"]


@pytest.mark.parametrize("named", ["m", "m:latest"])
def test_ollamas_two_names_for_a_model_are_no_difference(file: Path, named: str) -> None:
    declared = server(kind="ollama", models=f"['{named}']")
    apply(file, declared)
    assert [held.name for held in Server.objects.get().models.all()] == ["m"]
    assert apply(file, declared) == "No difference.\n"


def test_a_base_path_with_its_version_is_no_difference(file: Path) -> None:
    declared = server(base_path="/llm/v1", models_endpoint="/list")
    apply(file, declared)
    row = Server.objects.get()
    assert (row.base_path, row.models_endpoint) == ("/llm", "/v1/list")
    assert apply(file, declared) == "No difference.\n"


UNFIT = [
    ("servers:\n  list: {hostname: 127.0.0.1, port: 9}\n", 2, "taken"),
    ("servers:\n  register: {hostname: 127.0.0.1, port: 9}\n", 2, "taken"),
    ('servers:\n  "a b": {hostname: 127.0.0.1, port: 9}\n', 2, "server_id|letters"),
    ("servers:\n  a: {hostname: 169.254.169.254, port: 9}\n", 2, "security.fleet_networks"),
    ("servers:\n  a: {hostname: h, port: 100000000000000000000}\n", 2, "too large"),
    ("servers:\n  a: {hostname: h, port: 70000}\n", 2, "65535"),
    ('servers:\n  a:\n    hostname: h\n    port: 9\n    role: "\\ud800"\n', 5, "role: .*halves"),
    ('servers:\n  a:\n    hostname: h\n    port: 9\n    role: "a\\0b"\n', 5, "role: null"),
    ('servers:\n  "a\\0b": {hostname: h, port: 9}\n', 2, "null"),
    ("servers:\n  a: {hostname: h, port: 9, capabilities: {x: .nan}}\n", 2, "nan is no number"),
    ("servers:\n  a: {hostname: h, port: 9, capabilities: {x: [-.inf]}}\n", 2, "-inf is no number"),
    ("servers:\n  a: {hostname: h, port: 9, capabilities: {x: 2026-01-01}}\n", 2, "put it in quotes"),
    ("servers:\n  a: {hostname: h, port: 9, capabilities: {x: {1: y}}}\n", 2, "1 is not text"),
    ('servers:\n  a: {hostname: h, port: 9, models: [ok, "m\\0"]}\n', 2, "null"),
    ("servers:\n  a:\n    hostname: h\n    port: 9\n    models:\n    - {name: m, context_length: -1}\n", 6, "0"),
    ("classes:\n  c: {hedge_ms: -5}\n", 2, "hedge_ms"),
    ("classes:\n  c: {shares: {a: 0}}\n", 2, "shares are whole numbers"),
    ('aliases:\n  "x\\0": m\n', 2, "null"),
    ("aliases:\n  x: x\n", 2, "alias"),
]


@pytest.mark.parametrize(("text", "line", "reason"), UNFIT)
@pytest.mark.parametrize("verb", ["diff", "apply"])
def test_what_can_not_be_kept_is_told_with_its_line(file: Path, verb: str, text: str, line: int, reason: str) -> None:
    """With 2, by diff as by apply, and nothing is changed."""
    file.write_text(text)
    with pytest.raises(CommandError, match=rf", line {line}: .*({reason})") as refused:
        call("fleet", verb, str(file))
    assert refused.value.returncode == 2
    assert not Server.objects.exists()


def test_diff_exits_with_one_when_there_is_a_difference_and_changes_nothing(file: Path) -> None:
    file.write_text(server())
    assert diff(file)[0] == 1
    assert not Server.objects.exists()


def test_what_the_file_does_not_name_is_left_alone_and_said(file: Path) -> None:
    apply(file, f"{server('one')}{server('two').removeprefix('servers:')}aliases: {{x: m}}\n")
    assert "left alone (--prune removes them): servers two" in apply(file, f"{server('one')}aliases:\n  y: m\n")
    assert Server.objects.count() == 2
    said = apply(file, server("one"), "--prune")
    assert "- server two" in said
    assert [row.server_id for row in Server.objects.all()] == ["one"]
    assert Alias.objects.count() == 2, "a section that the file does not have is not pruned"
    assert ModelClass.objects.count() == 4
    assert Event.objects.first().type == "server_departed"  # type: ignore[union-attr]


def test_state_models_and_key_stay_where_nothing_is_said_of_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_ONE", "secret-of-one")
    apply(file, server(api_key_env="KEY_OF_ONE"))
    Server.objects.update(state="draining")
    said = apply(file, "servers:\n  one: {hostname: h, port: 80, weight: 2}\n")
    assert said == "~ server one\n    weight: 1 → 2\nDone.\n"
    row = Server.objects.get()
    assert (row.api_key, row.state, [held.name for held in row.models.all()]) == ("secret-of-one", "draining", ["m"])


def test_a_server_that_moves_leaves_key_kind_and_found_models_and_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what the file says of it anew; a name in other letters is the same address."""
    monkeypatch.setenv("KEY_OF_ONE", "secret-of-one")
    key = {"api_key_env": "KEY_OF_ONE", "state": "disabled"}
    apply(file, server(models="[]", kind="vllm", **key))
    ServedModel.objects.create(server=Server.objects.get(), name="found", context_length=7)
    apply(file, "servers:\n  one: {hostname: H, port: 80}\n")
    row = Server.objects.get()
    assert (row.api_key, row.kind, models()) == ("secret-of-one", "vllm", {"found": ""})
    said = apply(file, "servers:\n  one: {hostname: h, port: 81}\n")
    assert "    api_key: (hidden) → nothing\n" in said
    assert '    kind: "vllm" → nothing\n' in said
    row = Server.objects.get()
    assert (row.api_key, row.kind, models()) == ("", "", {})
    assert diff(file) == (0, "No difference.\n")
    apply(file, server(port=82, models="[]", kind="ollama", **key))
    row = Server.objects.get()
    assert (row.api_key, row.kind) == ("secret-of-one", "ollama")
    told = Event.objects.filter(type="server_registered").order_by("id").values_list("data__url", flat=True)
    assert [*told] == ["http://h:80", "http://h:81", "http://h:82"]


def test_no_key_is_exported_or_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_ONE", "secret-of-one")
    said = apply(file, server(api_key_env="KEY_OF_ONE"))
    key = file.parent / "key"
    key.write_text("secret-of-two\n")
    key.chmod(0o600)
    said += apply(file, server(api_key_file="key"))
    assert Server.objects.get().api_key == "secret-of-two"
    said += call("fleet", "export")
    assert "secret" not in said
    assert "api_key: (hidden) → (hidden)" in said
    assert "# It has an api_key." in said


def test_a_class_that_names_a_server_that_is_not_there_is_told(file: Path) -> None:
    classes = "classes:\n  c: {servers: [one, won], shares: {wun: 3}}\n"
    said = apply(file, server() + classes)
    assert "The class c names a server that is not there: won\n" in said
    assert "The class c names a server that is not there: wun\n" in said
    assert "not there: one" not in said


def test_who_changes_the_registry_meanwhile_is_waited_for_or_told(file: Path, fresh: str) -> None:
    """Never half of it, and never over what was not shown."""
    apply(file, server())
    file.write_text(server(port=81))
    with psycopg.connect(fresh) as other:
        other.execute("SELECT 1 FROM orchestration_server FOR UPDATE")
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(_apply_and_close, file)
            time.sleep(0.5)
            assert not waiting.done()
            other.execute("UPDATE orchestration_server SET weight = 7")
            other.commit()
            with pytest.raises(CommandError, match="has changed in the meantime"):
                waiting.result(timeout=20)
    row = Server.objects.get()
    assert (row.port, row.weight) == (80, 7)


def test_no_name_is_looked_up_while_the_registry_is_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that is away takes seconds for each, and registrations would wait for them all."""
    while_held: list[bool] = []
    monkeypatch.setattr(Addresses, "check", lambda *_: while_held.append(connection.in_atomic_block))
    apply(file, server())
    apply(file, server(hostname="other"))
    assert while_held == [False, False]


def _apply_and_close(file: Path) -> str:
    try:
        return call("fleet", "apply", str(file))
    finally:
        connection.close()


def test_draining_and_enabling_are_told(file: Path) -> None:
    apply(file, server())
    apply(file, server(state="draining"))
    apply(file, server(state="active"))
    assert [event.type for event in Event.objects.all()] == ["server_enabled", "server_drained", "server_registered"]


@pytest.mark.parametrize(("said", "after"), [({}, 1), ({"state": "draining"}, 1), ({"state": "disabled"}, 0)])
def test_what_a_webhook_holds_it_holds_until_the_file_says_another_state(
    file: Path, said: dict[str, object], after: int
) -> None:
    """Any other change is no word about the state."""
    apply(file, server())
    Server.objects.update(state="draining")
    Hold.objects.create(server=Server.objects.get(), hook=Hook.objects.get(name="alertmanager"), cause="alert")
    apply(file, server(weight=3, **said))
    row = Server.objects.get()
    assert (row.state, row.weight, row.holds.count()) == (said.get("state", "draining"), 3, after)


def test_it_is_done_whole_or_not_at_all(file: Path) -> None:
    text = f"{server('a-good-one')}  b-bad-one:\n    hostname: h\n    port: 80\n    weight: 5000\n"
    with pytest.raises(CommandError, match=rf"^{file}, line 9: servers.b-bad-one.weight: .*1000") as caught:
        apply(file, text)
    assert caught.value.returncode == 2
    assert not Server.objects.exists()
    assert not Event.objects.exists()


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (f"{server()}    wieght: 1\n", "line 6: unknown key 'wieght'; did you mean 'weight'"),
        (server("bad id"), "line 2: servers.bad id.*letters, digits"),
        (server(models="['']"), "line 5: servers.one.models"),
        (server(capabilities="['']"), "line 6: servers.one.capabilities: words of 1"),
        ("classes:\n  c:\n    shares: {one: 5000}\n", "line 3: classes.c.shares: shares are"),
        ("aliases:\n  x: x\n", "line 2: aliases.x"),
        (server(api_key_env="NOT_THERE"), "line 6: api_key_env: the environment has no NOT_THERE"),
        (server(api_key_file="not-there"), "line 6: api_key_file: .*No such file"),
    ],
)
def test_what_is_wrong_names_file_and_line(file: Path, text: str, about: str) -> None:
    with pytest.raises(CommandError, match=rf"^{file}, {about}"):
        apply(file, text)


@pytest.mark.parametrize(
    ("content", "mode", "about"), [(b"k", 0o644, "others can read this key"), (b"\xff\xfe", 0o600, "no text in UTF-8")]
)
def test_a_file_that_is_no_good_for_a_key(file: Path, content: bytes, mode: int, about: str) -> None:
    key = file.parent / "key"
    key.write_bytes(content)
    key.chmod(mode)
    with pytest.raises(CommandError, match=rf"^{file}, line 6: api_key_file: {key}.*{about}"):
        apply(file, server(api_key_file="key"))
    assert not Server.objects.exists()


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        call("fleet", "diff", str(file))


@pytest.fixture
def speaking() -> Iterator[Fleet]:
    """A server that says itself what it is."""
    with Fleet.start(kind="ollama", models=["told-1", "told-2"]) as server:
        yield server


def local(port: int, more: str = "") -> str:
    return f"servers:\n  one: {{hostname: 127.0.0.1, port: {port}{more}}}\n"


def models() -> dict[str, str]:
    """Of the one server: who has named them."""
    return {held.name: held.named_by for held in Server.objects.get(server_id="one").models.all()}


def test_a_new_server_says_itself_what_it_is_and_has(file: Path, speaking: Fleet) -> None:
    said = apply(file, local(speaking.port) + "  gone: {hostname: 127.0.0.1, port: 1}\n")
    assert models() == {"told-1": "", "told-2": ""}
    assert Server.objects.get(server_id="one").kind == "ollama"
    assert "once it answers: bin/manage server refresh gone" in said
    assert Server.objects.count() == 2
    assert diff(file) == (0, "No difference.\n")
    exported = call("fleet", "export")
    assert "kind: ollama" in exported
    assert "told" not in exported, "what it says itself is not the operator's word"


def test_an_export_brings_back_what_has_been_drained_or_named_since(file: Path) -> None:
    apply(file, server(models="[]"))
    call("fleet", "export", str(file))
    Server.objects.update(state="draining")
    ServedModel.objects.create(server=Server.objects.get(), name="named", named_by="operator")
    assert diff(file) == (1, "")
    said = call("fleet", "apply", str(file))
    assert '    state: "draining" → "active"\n' in said
    assert "    model named: {} → nothing\n" in said
    assert (Server.objects.get().state, models()) == ("active", {})


def test_models_are_named_and_named_no_more(file: Path, speaking: Fleet) -> None:
    apply(file, local(speaking.port))
    said = apply(file, local(speaking.port, ", models: [told-1, mine]"))
    assert "    model mine: nothing → {}\n" in said
    assert models() == {"told-1": "operator", "mine": "operator"}
    assert diff(file) == (0, "No difference.\n")
    apply(file, local(speaking.port))
    assert models() == {"told-1": "operator", "mine": "operator"}, "of which nothing is said"
    apply(file, local(speaking.port, ", models: []"))
    assert models() == {"told-1": "", "told-2": ""}
    assert diff(file) == (0, "No difference.\n")


def test_what_the_file_says_of_a_model_its_server_does_not_undo(file: Path, speaking: Fleet) -> None:
    apply(file, local(speaking.port, ", models: [{name: told-1, context_length: 77, capabilities: [chat]}]"))
    call("server", "refresh", "one")
    held = Server.objects.get(server_id="one").models.get()
    assert (held.context_length, held.capabilities, held.owned_by) == (77, ["chat"], "ollama")
    assert diff(file) == (0, "No difference.\n")


def test_what_the_file_does_not_say_of_a_model_its_server_does(file: Path) -> None:
    """Whatever else the file says of the server; and so again once the file says it no more."""

    def known(more: str) -> tuple[int | None, list[str] | None]:
        apply(file, local(port, f", weight: {weight}, models: [{{name: m{more}}}]"))
        assert diff(file) == (0, "No difference.\n")
        call("server", "refresh", "one")
        held = ServedModel.objects.get()
        assert held.owned_by == "vllm"
        return held.context_length, held.capabilities

    with Fleet.start(kind="vllm", models=["m"], context_length=4096) as server:
        port, weight = server.port, 1
        assert known(", capabilities: [chat]") == (4096, ["chat"])
        weight = 2
        assert known(", capabilities: [chat]") == (4096, ["chat"])
        assert "4096" not in call("fleet", "export")
        server.restart("--context-length", "32768")
        assert known(", capabilities: [chat]") == (32768, ["chat"])
        assert known(", context_length: 77") == (77, None)
        assert known("") == (32768, None)


def test_what_a_registration_has_named_is_not_the_files_until_it_names_it(file: Path) -> None:
    """Then it is an operator's word, which the next registration does not take back."""
    apply(file, server(models="[]"))
    row = Server.objects.get()
    row.registered_by = "k"
    row.save()
    ServedModel.objects.create(server=row, name="own", named_by="registration")
    exported = call("fleet", "export")
    assert "own" not in exported
    apply(file, exported.replace("hostname: h", "hostname: other"))
    apply(file, server(models="[mine]"))
    assert models() == {"mine": "operator", "own": "registration"}
    assert "model own: nothing" in apply(file, server(models="[mine, own]"))
    assert models() == {"mine": "operator", "own": "operator"}
    assert diff(file) == (0, "No difference.\n")


def test_what_a_registration_may_name_too_is_given_back(file: Path) -> None:
    """To be found, or not, when the server answers: until then it is served."""
    apply(file, server(models="[own]", state="disabled"))
    Server.objects.update(registered_by="k")
    apply(file, server(models="[]", state="disabled"))
    assert models() == {"own": ""}


@pytest.mark.parametrize("by", ["", "k"])
def test_a_server_that_is_enabled_is_asked(file: Path, speaking: Fleet, by: str) -> None:
    entry = ", models: [told-1], state: {}"
    apply(file, local(speaking.port, entry.format("disabled")))
    Server.objects.update(kind="", registered_by=by)
    apply(file, local(speaking.port, entry.format("active")))
    assert Server.objects.get().kind == "ollama"
    assert models() == {"told-1": "operator", **({"told-2": ""} if by else {})}


def test_a_registered_server_that_moves_is_asked(file: Path, speaking: Fleet) -> None:
    apply(file, server(models="[told-1]"))
    Server.objects.update(registered_by="k")
    apply(file, local(speaking.port, ", models: [told-1]"))
    assert models() == {"told-1": "operator", "told-2": ""}


@pytest.mark.parametrize("state", ["active", "draining", "disabled"])
def test_a_server_that_is_different_is_asked_where_it_may_be_called(file: Path, speaking: Fleet, state: str) -> None:
    apply(file, server(models="[]", state=state))
    Server.objects.update(kind="ollama")
    apply(file, local(speaking.port))
    assert set(models()) == (set() if state == "disabled" else {"told-1", "told-2"})


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'out of order'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON orchestration_servedmodel FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def test_a_failure_of_the_database_is_told_of_each_server(file: Path, speaking: Fleet, fresh: str) -> None:
    """What has been applied is applied."""
    with psycopg.connect(fresh, autocommit=True) as other:
        other.execute(REFUSE.encode())
        try:
            said = apply(file, f"{local(speaking.port)}  two: {{hostname: 127.0.0.1, port: {speaking.port}}}\n")
        finally:
            other.execute("DROP FUNCTION refuse CASCADE")
    assert "one: out of order" in said
    assert "two: out of order" in said
    assert Server.objects.count() == 2


def test_who_waits_for_servers_holds_no_connections(file: Path, speaking: Fleet, fresh: str) -> None:
    speaking.behave("slow_start 1500", path="/api/tags")
    ids = [f"s-{number}" for number in range(8)]
    text = "".join(f"  {name}: {{hostname: 127.0.0.1, port: {speaking.port}, kind: ollama}}\n" for name in ids)
    with ThreadPoolExecutor() as pool, psycopg.connect(fresh) as other:
        file.write_text(f"servers:\n{text}")
        applying = pool.submit(_apply_and_close, file)
        speaking.wait_for(lambda log: len(log) >= len(ids), 10)
        found = other.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()").fetchone()
        assert applying.result(20).endswith("Done.\n")
    assert found is not None
    assert found[0] < len(ids)


def test_what_is_pruned_is_forgotten_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[tuple[str, ...]] = []
    monkeypatch.setattr(rows, "forget", lambda *names: forgotten.append(names))
    apply(file, "servers:\n" + "".join(server(name).removeprefix("servers:\n") for name in ("one", "two", "three")))
    apply(file, server("three"), "--prune")
    assert [sorted(names) for names in forgotten] == [["one", "two"]]


@pytest.mark.parametrize(("answer", "servers"), [("n", 0), ("y", 1)])
def test_at_a_terminal_it_asks(citadel: Instance, fresh: str, file: Path, answer: str, servers: int) -> None:
    file.write_text(server())
    ours, theirs = pty.openpty()
    environment = {**os.environ, "CITADEL_HOME": str(citadel.home), "DATABASE_URL": fresh}
    command = [sys.executable, str(ROOT / "manage.py"), "fleet", "apply", str(file)]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, f"{answer}\n".encode())
        said = process.communicate(timeout=60)[0]
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert "+ server one" in said
    assert "Make it so? [y/N]" in said
    assert Server.objects.count() == servers
