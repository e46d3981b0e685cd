"""Debian's real Alertmanager: a firing alert drains the server in its labels, a resolved one enables it."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from tests.instance import Instance, free_port

PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager") or ""
WITHIN = 20.0

CONFIGURATION = """
route: {{receiver: citadel, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers:
  - name: citadel
    webhook_configs:
      - url: {url}/webhooks/alertmanager
        send_resolved: true
        http_config: {{authorization: {{type: Bearer, credentials: {key}}}}}
"""


@contextmanager
def alertmanager(folder: Path, url: str, key: str) -> Iterator[str]:
    """A running Alertmanager, by its address."""
    configuration = folder / "alertmanager.yml"
    configuration.write_text(CONFIGURATION.format(url=url, key=key))
    address = f"127.0.0.1:{free_port()}"
    command = [PROGRAM, f"--config.file={configuration}", f"--storage.path={folder}", f"--web.listen-address={address}"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen([*command, "--cluster.listen-address="], stdout=output, stderr=output)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(10)


async def post(address: str, server: str, *, resolved: bool = False) -> None:
    """Tells Alertmanager of an alert, as Prometheus does; again until it listens."""
    now = datetime.now(UTC)
    alert = {
        "labels": {"alertname": "ServerDown", "server_id": server},
        "startsAt": (now - timedelta(minutes=1)).isoformat(),
    }
    if resolved:
        alert["endsAt"] = now.isoformat()
    async with aiohttp.ClientSession() as session, asyncio.timeout(WITHIN):
        while True:
            try:
                async with session.post(f"{address}/api/v2/alerts", json=[alert]) as answer:
                    assert answer.status == 200, await answer.text()
                    return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.1)


async def until(found: Callable[[], str], wanted: str) -> None:
    for _ in range(int(WITHIN / 0.05)):
        if found() == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {found()} after {WITHIN} s")


@pytest.mark.skipif(
    not PROGRAM, reason="Debian's package prometheus-alertmanager is not installed; .ci/run installs it"
)
async def test_a_real_alertmanager_drains_and_enables(
    citadel: Instance, server: str, state: Callable[[str], str], tmp_path: Path
) -> None:
    with alertmanager(tmp_path, citadel.url, citadel.key(role="operator")) as address:
        await post(address, server)
        await until(lambda: state(server), "draining")
        await post(address, server, resolved=True)
        await until(lambda: state(server), "active")
