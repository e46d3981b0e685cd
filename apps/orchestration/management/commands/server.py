"""`bin/manage server add|list|refresh|drain|enable|disable|remove`: the registry from the command line."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from apps.orchestration import key_file
from apps.orchestration.dialects import detection
from apps.orchestration.discovery import DiscoveryFailed, MetItself
from apps.orchestration.health.glance import health_in_words
from apps.orchestration.models import Server
from apps.orchestration.moving import ADDRESS
from apps.orchestration.registry import add, discover_and_keep, refresh, remove, set_state
from citadel import command

VERBS = {
    "refresh": "ask a server anew for its models",
    "drain": "let what runs on a server end and send nothing new there",
    "enable": "give traffic to a server",
    "disable": "take a server out of traffic and probes",
    "remove": "take a server out of the registry",
}
BY = "the command line"
NO_MODEL_SERVER = (
    "{0.url} answers, but not as a model server: no list of models at {pages}. It is registered as a plain web server. "
    "Where the address is wrong: bin/manage server add {0} with the right one, or bin/manage server remove {0}; where "
    "it is meant: --kind http."
)
COLUMNS = ("SERVER", "STATE", "HEALTH", "KIND", "ADDRESS", "MODELS")


class Command(command.Command):
    """Adds, lists, refreshes, drains, enables, disables and removes servers."""

    help = "Adds, lists, refreshes, drains, enables, disables and removes the servers of the fleet."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The verbs and what each takes."""
        verbs = parser.add_subparsers(dest="verb", required=True)
        add = verbs.add_parser(
            "add",
            help="register a server, or bring its entry up to date: what you don't say stays",
            allow_abbrev=False,  # a key that is typed in as --api-key is no file
        )
        add.add_argument("server_id")
        add.add_argument("url", help="such as http://192.168.1.20:11434")
        add.add_argument("--kind", choices=Server.Kind.values, default="", help="found out by asking unless said")
        add.add_argument("--model", action="append", help="instead of asking the server; may be repeated")
        add.add_argument("--weight", type=int, help="its share of the requests, 1 unless said")
        add.add_argument("--max-concurrent", type=int, help="requests that it takes at once; others wait; 0: no limit")
        add.add_argument(
            "--api-key-file",
            help="a file with the key that is sent to the server as a bearer token; - is standard input, an empty key "
            "none; forgotten when the address changes",
        )
        verbs.add_parser("list", help="show the registry")
        for verb, text in VERBS.items():
            verbs.add_parser(verb, help=text).add_argument("server_id")

    def handle(self, *_args: Any, verb: str, **options: Any) -> None:
        """Runs one verb."""
        try:
            getattr(self, f"_{verb}")(options)
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from None
        except MetItself as itself:
            raise CommandError(f"{itself}, which can't be a server of its own fleet") from None
        except DiscoveryFailed as failure:
            instead = "; name its models with --model to register it all the same" if verb == "add" else ""
            raise CommandError(f"{failure}{instead}") from None
        except Server.DoesNotExist:
            raise CommandError(f"no server {options['server_id']!r}; see: bin/manage server list") from None

    def _add(self, options: dict[str, Any]) -> None:
        before = Server.objects.filter(server_id=options["server_id"]).first()
        server = add(
            options["server_id"],
            options["url"],
            kind=options["kind"],
            models=options["model"],
            weight=options["weight"],
            max_concurrent=options["max_concurrent"],
            api_key=self._api_key(options["api_key_file"]),
        )
        self.stdout.write(f"{server.server_id}: {server.url} serves {self._models(server)}")
        place = {name: getattr(server, name) for name in ADDRESS}
        twins = Server.objects.filter(**place).exclude(pk=server.pk).values_list("server_id", flat=True)
        if before and before.url != server.url:
            self._note(f"{server.server_id} was there already; its address is changed from {before.url}.")
        if twins:
            self._note(f"the same address as {', '.join(twins)}.")
        if server.kind == Server.Kind.HTTP and not options["kind"]:
            pages = " or ".join(f"{server.url}{path}" for path in (detection.MODELS, detection.TAGS))
            self._note(NO_MODEL_SERVER.format(server, pages=pages))

    def _api_key(self, file: str | None) -> str | None:
        """The key of that file; None where nothing is said of it. It is no word of the command: all who run programs on
        this machine see those.
        """
        if file is None:
            return None
        try:
            return sys.stdin.read().strip() if file == "-" else key_file.read(Path(file))
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}") from None
        except ValueError as error:
            raise CommandError(str(error)) from None

    def _note(self, text: str) -> None:
        self.stderr.write(f"Note: {text}", self.style.WARNING)

    def _list(self, _options: dict[str, Any]) -> None:
        servers = list(Server.objects.prefetch_related("models"))  # first: where nothing runs, no header either
        health = health_in_words()
        self.stdout.write("\t".join(COLUMNS))
        for server in servers:
            name, kind, models = server.server_id, server.kind or "unknown", self._models(server)
            self.stdout.write("\t".join((name, server.state, health(name), kind, server.url, models)))

    def _refresh(self, options: dict[str, Any]) -> None:
        server = Server.objects.get(server_id=options["server_id"])
        refresh(server)
        self.stdout.write(f"{server.server_id}: {self._models(server)}")

    def _drain(self, options: dict[str, Any]) -> None:
        self._set(options["server_id"], Server.State.DRAINING, "what runs there may end, nothing new is sent there")

    def _enable(self, options: dict[str, Any]) -> None:
        self._set(options["server_id"], Server.State.ACTIVE, "at {0.url}, it gets traffic while it is well")

    def _disable(self, options: dict[str, Any]) -> None:
        self._set(options["server_id"], Server.State.DISABLED, "it gets neither traffic nor probes")

    def _set(self, server_id: str, state: Server.State, meaning: str) -> None:
        server, ask = set_state(server_id, state, BY)
        if ask:
            self._discover(server)
        self.stdout.write(f"{server_id}: {state}, {meaning.format(server)}")

    def _discover(self, server: Server) -> None:
        """What is in the way is noted; MetItself where the server leads back here and is out again."""
        try:
            discover_and_keep(server.server_id)
        except (DiscoveryFailed, ValidationError) as failure:
            server.refresh_from_db(fields=["state"])
            if isinstance(failure, MetItself) and server.state == Server.State.DISABLED:
                raise
            self._note(str(failure))

    def _remove(self, options: dict[str, Any]) -> None:
        remove(options["server_id"], BY)
        self.stdout.write(f"{options['server_id']}: removed")

    def _models(self, server: Server) -> str:
        return ", ".join(model.name for model in server.models.all()) or "no models"
