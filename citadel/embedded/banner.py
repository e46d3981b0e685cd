"""What the person at the terminal reads once everything runs."""

import json
import shlex
from collections.abc import Mapping

from citadel.embedded import demo
from citadel.embedded.home import Home

QUESTION = "Name three fruits."


def show(home: Home, url: str, demo_fleet: bool, *, is_first: bool) -> None:
    """Print where Citadel is; after the first start also the login, the key and a request to paste."""
    print(text(home, url, demo_fleet, is_first=is_first), flush=True)


def text(home: Home, url: str, demo_fleet: bool, *, is_first: bool) -> str:
    """The lines that `show` prints. URL is the address that clients on this machine use."""
    lines = ["", f"  Citadel serves on {url}", "", f"  Console   {url}/admin/"]
    if is_first:
        made = json.loads(home.first_run.read_text())
        lines += [
            *login(made),
            f"  API key   {made['api_key']}",
            "",
            f"  These stand in {home.first_run} and are shown this once. Try it:",
            "",
            f"  {curl(url, made['api_key'], demo_fleet)}",
        ]
    else:
        lines.append(f"  Login and API key of the first start: {home.first_run}")
    return "\n".join([*lines, "", "  Ctrl-C stops it.", ""])


def key(home: Home) -> str | None:
    """The API key that this home was given; None when it has none yet."""
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
