"""What the person at the terminal reads once everything runs."""

import ipaddress
import json
import shlex
from collections.abc import Mapping

from citadel.embedded import demo
from citadel.embedded.home import Home
from citadel.sections import Config

QUESTION = "Name three fruits."


def show(home: Home, config: Config, url: str, listens_on: str) -> None:
    """Print where Citadel is; until it has been printed once also the login, the key and a request to paste.

    URL is the address that clients on this machine use, LISTENS_ON the one that the socket has.
    """
    made = json.loads(home.first_run.read_text())
    is_first = home.unseen.exists() and "api_key" in made
    lines = [*_place(config, url, listens_on), *(_whole(home, config, url, made) if is_first else _short(home, made))]
    print("\n".join(["", *lines, "", "  Ctrl-C stops it.", ""]), flush=True)
    home.unseen.unlink(missing_ok=True)


def _place(config: Config, url: str, listens_on: str) -> list[str]:
    """Where it is, and a warning where others can listen in."""
    lines = [f"  Citadel serves on {url}", "", f"  Console   {url}/admin/"]
    address = ipaddress.ip_address(listens_on)
    if address.is_loopback or config.server.public_url:
        return lines
    where = f"{address}, every address of this machine," if address.is_unspecified else str(address)
    warning = f"  It listens on {where} in plain HTTP: put TLS in front of it before others use it."
    return [lines[0], warning, *lines[1:]]


def _whole(home: Home, config: Config, url: str, made: Mapping[str, str]) -> list[str]:
    return [
        *login(made),
        f"  API key   {made['api_key']}",
        "",
        f"  These stand in {home.first_run} and are shown this once. Try it:",
        "",
        f"  {curl(url, made['api_key'], config.demo_fleet)}",
    ]


def _short(home: Home, made: Mapping[str, str]) -> list[str]:
    """Where that stands of the first start which is still good."""
    told = [what for what, name in (("Login", "password"), ("API key", "api_key")) if name in made]
    lines = [f"  {' and '.join(told)} of the first start: {home.first_run}"] if told else []
    if "api_key" not in made:
        lines.append("  The API key of the first start is revoked or has expired; bin/manage key create makes others.")
    return lines


def key(home: Home) -> str | None:
    """The API key that this home was given; None when it has none yet, or none that is in force."""
    try:
        return str(json.loads(home.first_run.read_text())["api_key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def login(made: Mapping[str, str]) -> list[str]:
    """How to get into the console, or how someone can who has forgotten: of a password only its hash is kept."""
    name = made["username"]
    if "password" in made:
        return [f"  Login     {name}", f"  Password  {made['password']}"]
    return [
        f"  Login     The database's administrator {name!r} is there already, with the password from before;",
        f"            bin/manage changepassword {shlex.quote(name)} sets another.",
    ]


def curl(url: str, key: str, demo_fleet: bool) -> str:
    """A command for a shell: asks the demo model, or for the list of models where there is no demo fleet."""
    bearer = f"Authorization: Bearer {key}"
    if not demo_fleet:
        return shlex.join(["curl", f"{url}/v1/models", "-H", bearer])
    body = {"model": demo.CHAT.model, "max_tokens": 40, "messages": [{"role": "user", "content": QUESTION}]}
    headers = ["-H", bearer, "-H", "Content-Type: application/json"]
    return shlex.join(["curl", f"{url}/v1/chat/completions", *headers, "-d", json.dumps(body)])
