"""`curl -N`, the client that everybody has."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping

import pytest

from tests.clients.conftest import CHAT_MODEL, Served
from tests.instance import Instance

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed on this machine")


def curl(citadel: Instance, model: str, message: str, *options: str, stream: bool = True) -> list[str]:
    body = {"model": model, "messages": [{"role": "user", "content": message}], "max_tokens": 6, "stream": stream}
    return [
        *("curl", "-N", "-s", "--max-time", "30", *options),
        *("-H", f"Authorization: Bearer {citadel.key()}", "-d", json.dumps(body)),
        f"{citadel.url}/v1/chat/completions",
    ]


def test_chunks_are_shown_as_they_come(citadel: Instance, served: Mapping[str, Served]) -> None:
    command = curl(citadel, served["trouble"].model, "[[behave:slow_chunks 60]]")
    came, lines = [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.strip():
                came.append(time.monotonic())
                lines.append(line)
    assert process.returncode == 0
    assert lines[-1] == "data: [DONE]\n"
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1])
    assert came[-1] - came[0] > 0.3


def test_a_stream_that_is_cut_shows_what_came_and_one_error(citadel: Instance, served: Mapping[str, Served]) -> None:
    command = curl(citadel, served["trouble"].model, "[[behave:die chunk:3]]")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *chunks, last = (json.loads(line.removeprefix("data: ")) for line in done.stdout.split("\n\n") if line)
    assert len([chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content")]) == 3
    assert last["error"]["code"] == "stream_interrupted"


def test_a_real_model_streams(citadel: Instance) -> None:
    done = subprocess.run(curl(citadel, CHAT_MODEL, "Say hello."), capture_output=True, text=True, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_an_answer_and_its_headers(citadel: Instance, served: Mapping[str, Served]) -> None:
    command = curl(citadel, served["vllm"].model, "hello", "-i", "--compressed", stream=False)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    head, _, body = done.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert f"x-citadel-server: {served['vllm'].server_id}" in head
    assert json.loads(body)["choices"]
