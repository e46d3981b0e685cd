"""A real Chromium without a window, driven over its own protocol (CDP): pages, clicks, and a virtual authenticator."""

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 30.0
PHONE = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


class Page:
    """One tab. What its console complains of is in `complaints`."""

    def __init__(self, link: aiohttp.ClientWebSocketResponse):
        self._link = link
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        self._loaded = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._link:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(told["params"]["entry"]["text"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"].get("text")))
            elif told["method"] == "Runtime.consoleAPICalled" and told["params"]["type"] == "error":
                self.complaints.append(str(told["params"]["args"]))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._link.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            answer = await self._answers[number]
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    async def go(self, url: str) -> None:
        """Opens a page."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await self._wait()

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; Chromium's own tools are not held to the page's policy."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (script, result)
        return result["result"].get("value")

    async def fill(self, selector: str, text: str) -> None:
        """Types into a field."""
        await self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}")

    async def click(self, selector: str) -> None:
        """Clicks on what leads to another page, and waits for that."""
        self._loaded.clear()
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")
        await self._wait()

    async def path(self) -> str:
        """Where it is."""
        return str(await self.run("location.pathname"))

    async def _wait(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._loaded.wait()

    async def close(self) -> None:
        self._reading.cancel()
        await self._link.close()


@asynccontextmanager
async def page() -> AsyncIterator[Page]:
    """A tab of a browser of its own, that nobody has used before."""
    with _chromium() as tab:
        async with aiohttp.ClientSession() as session, session.ws_connect(tab) as link:
            opened = Page(link)
            for domain in ("Page", "Runtime", "Log", "WebAuthn"):
                await opened.call(f"{domain}.enable")
            yield opened
            await opened.close()


@contextmanager
def _chromium() -> Iterator[str]:
    """The address of the first tab of one that runs until the end."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen([CHROMIUM, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield _first_tab(Path(folder, "DevToolsActivePort"))
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _first_tab(told: Path) -> str:
    """As soon as there is one; the file tells the port."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if told.exists() and (lines := told.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
                tabs = [tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0])
        time.sleep(0.1)
    raise AssertionError("Chromium has not started")
