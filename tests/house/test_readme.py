"""What the README tells people to type works as it stands, on a running Citadel."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from citadel.sections import HealthSection
from tests.fleet.control import Fleet
from tests.house.modules import ROOT
from tests.instance import QUIET, Instance, free_port, running

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)

NOTICED_WITHIN = 20.0


def block(kind: str, part: str) -> str:
    """The one block of that kind with that text in it."""
    [found] = [text for language, text in BLOCKS if language == kind and part in text]
    return str(found)


@pytest.fixture
def environment(citadel: Instance) -> Mapping[str, str]:
    return shell(citadel)


def shell(citadel: Instance) -> Mapping[str, str]:
    """What a reader's shell has after the first block."""
    return {
        **os.environ,
        "CITADEL_HOME": str(citadel.home),
        "OPENAI_BASE_URL": f"{citadel.url}/v1",
        "OPENAI_API_KEY": citadel.admin_key,
    }


def run(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_two_commands_are_there() -> None:
    for command in ("bin/run", "bin/test", "bin/bench"):
        assert ("sh", f"{command}\n") in BLOCKS
        assert (ROOT / command).stat().st_mode & 0o111


def test_the_variables_come_out_of_the_file(citadel: Instance) -> None:
    exports = block("sh", "export").replace("var/first-run.json", str(citadel.home / "first-run.json"))
    key = run(["sh", "-c", f"{exports}\nprintf %s $OPENAI_API_KEY"], os.environ)
    assert key == citadel.admin_key


def test_a_key_that_is_refused_by_now_is_told(tmp_path: Path) -> None:
    file = tmp_path / "first-run.json"
    file.write_text('{"url": "http://127.0.0.1:8002", "refused_api_key": "ctd_x_y"}')
    exports = block("sh", "export").replace("var/first-run.json", str(file))
    done = subprocess.run(["sh", "-c", exports], capture_output=True, text=True, timeout=20, check=False)
    assert "bin/manage key create" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_first_request_is_answered(environment: Mapping[str, str]) -> None:
    answer = run(["sh", "-c", block("sh", "curl $OPENAI_BASE_URL")], environment)
    assert '"finish_reason"' in answer


def test_the_program_runs(environment: Mapping[str, str]) -> None:
    text = run([sys.executable, "-c", block("python", "OpenAI()")], environment)
    assert text.endswith("2 vectors of 384 numbers\n")
    assert len(text.splitlines()[0]) > 1


def test_a_server_is_added_refreshed_listed_and_removed(environment: Mapping[str, str], model: str) -> None:
    server = Fleet.start(models=[model], kind="ollama")
    server.open()
    try:
        add = block("sh", "server add ollama-1").replace("http://192.168.1.20:11434", server.url)
        assert model in run(["sh", "-c", add], environment)
        for command in re.findall(r"`(bin/manage server [a-z]+[^`]*)`", TEXT.replace("\n", " ")):
            run(["sh", "-c", command], environment)
        assert "ollama-1" not in run(["bin/manage", "server", "list"], environment)
    finally:
        server.close()


def test_a_server_registers_itself(citadel: Instance, environment: Mapping[str, str]) -> None:
    try:
        answer = run(["sh", "-c", block("sh", "servers/register")], environment)
        assert '"status":"registered"' in answer
        assert '"status":"ok"' in run(["sh", "-c", block("sh", "/heartbeat")], environment)
    finally:
        citadel.remove("llm-02")


def test_the_agent_speaks_for_a_server(citadel: Instance, environment: Mapping[str, str]) -> None:
    command = block("sh", "bin/manage agent").replace("…", citadel.admin_key)
    command = command.replace("http://citadel.example:8002", citadel.url).replace(" bin/", " exec bin/")
    with subprocess.Popen(["sh", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "registered llm-03: active\n"
        agent.terminate()
        assert "deregistered llm-03" in agent.communicate(timeout=20)[0]


def test_keys_are_made(citadel: Instance, environment: Mapping[str, str]) -> None:
    for team in ("research", "watch"):
        key = run(["sh", "-c", block("sh", f"key create --team {team}")], environment).strip()
        assert re.fullmatch(r"ctd_\w{10}_\w{39}", key)
    assert key.split("_")[1] in run(["bin/manage", "key", "list"], environment)
    metrics = urllib.request.Request(f"{citadel.url}/metrics", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(metrics) as answer:
        assert b"http_requests_total" in answer.read()


def test_the_health_pages_answer(citadel: Instance) -> None:
    for page in re.findall(r"`(/health[a-z/]*)`", TEXT):
        expected = {200, 503} if page == "/health/ready" else {200}  # others' tests keep models without a server
        assert httpx.get(citadel.url + page).status_code in expected, page


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """A reader's shell beside a Citadel that looks at its servers as often as a reader's does."""
    health = {name: str(getattr(HealthSection(), name.removeprefix("CITADEL_HEALTH__").lower())) for name in QUIET}
    with running(tmp_path_factory.mktemp("usual"), {"CITADEL_DEMO_FLEET": "0", **health}) as citadel:
        yield shell(citadel)


def test_servers_take_trouble(usual: Mapping[str, str]) -> None:
    ports = {name: str(free_port()) for name in ("9001", "9002")}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(misbehaving(block("sh", f"--port {name}"), port)) for name, port in ports.items()
        ]
        add = block("sh", "server add tiny-1")
        for name, port in ports.items():
            add = add.replace(name, port)
        run(["sh", "-e", "-c", add], usual)
        servers[0].kill()
        servers[0].wait()
        deadline = time.monotonic() + NOTICED_WITHIN
        while not re.search("tiny-1\tactive\tunhealthy \\(.+: refused", run(["bin/manage", "server", "list"], usual)):
            assert time.monotonic() < deadline
            assert attempts(usual) <= 2
        assert sorted(attempts(usual) for _ in range(3))[:2] == [1, 1], "one may be a trial"
        assert "stream_interrupted" in run(["sh", "-c", block("sh", "[[behave:die")], usual)
        run(["sh", "-e", "-c", block("sh", "server remove tiny-1")], usual)


def attempts(environment: Mapping[str, str]) -> int:
    """How many servers a request was sent to that was answered."""
    answer = run(["sh", "-c", block("sh", "Who is there?")], environment)
    assert "HTTP/1.1 200" in answer
    [number] = re.findall(r"^x-citadel-attempts: (\d+)\r?$", answer, re.MULTILINE)
    return int(number)


@contextmanager
def misbehaving(command: str, port: str) -> Iterator["subprocess.Popen[bytes]"]:
    words = command.split()
    words[words.index("--port") + 1] = port
    with subprocess.Popen([sys.executable, *words[1:]], cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert f'"port": {port}' in server.stdout.readline().decode()
            yield server
        finally:
            server.terminate()


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["--port", "9000"], 2)])
def test_starting_takes_no_options(words: list[str], status: int) -> None:
    done = subprocess.run(["bin/run", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == status
    assert "takes no options" in done.stdout + done.stderr


def test_settings_are_shown(environment: Mapping[str, str]) -> None:
    assert "server.port = " in run(["bin/manage", "config", "show"], environment)
