"""`bin/manage fleet export|diff|apply`: the fleet as code."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import CommandError
from django.db import OperationalError, transaction

from apps.orchestration import key_file
from apps.orchestration.fleet import CALLED
from apps.orchestration.fleet_file import notation, rows
from apps.orchestration.fleet_file.declared import Declared, Difference, differences, strangers, target, told, unnamed
from apps.orchestration.models import ServedModel, Server
from apps.orchestration.registry import discover_all
from citadel import command


class Command(command.Command):
    """Writes the registry as a file, tells what a file would change, and changes it."""

    help = (
        "The fleet as code: servers, their models, classes and aliases in a YAML file. diff exits 1 when it finds any."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The verbs and what each takes."""
        verbs = parser.add_subparsers(dest="verb", required=True)
        export = verbs.add_parser("export", help="write the registry as a file; keys of servers are not in it")
        export.add_argument("file", nargs="?", default="-", help="standard output unless said")
        for verb, text in (("diff", "tell what apply would change"), ("apply", "make the registry what the file says")):
            one = verbs.add_parser(verb, help=text)
            one.add_argument("file", help="- is standard input")
            one.add_argument("--prune", action="store_true", help="remove what the file does not name")
        one.add_argument("--yes", action="store_true", help="don't ask")

    def handle(self, *_args: Any, verb: str, file: str, **options: Any) -> None:
        """Runs one verb."""
        getattr(self, f"_{verb}")(file, options)

    def _export(self, file: str, _options: dict[str, Any]) -> None:
        text = notation.write(rows.load())
        if file == "-":
            self.stdout.write(text, ending="")
            return
        try:
            Path(file).write_text(text, encoding="utf-8")
        except OSError as error:
            self._refuse(f"{file}: {error.strerror}")

    def _diff(self, file: str, options: dict[str, Any]) -> None:
        wanted, lines = self._read(file)
        if self._show(file, wanted, lines, options["prune"]):
            sys.exit(1)

    def _apply(self, file: str, options: dict[str, Any]) -> None:
        wanted, lines = self._read(file)
        shown = self._show(file, wanted, lines, options["prune"])
        if not shown or not self._agreed(options["yes"]):
            return
        try:
            enabled = self._make_so(wanted, shown, options["prune"])
        except rows.Unfit as unfit:  # something else has taken its place meanwhile
            self._refuse(f"{file}, line {lines.of(*unfit.path)}: {unfit}")
        except OperationalError as error:
            self._refuse(f"the registry can't be changed now: {error}")
        self.stdout.write("Done.")
        self._find_models(shown, enabled)

    def _make_so(self, wanted: Declared, shown: Sequence[Difference], prune: bool) -> list[str]:
        """All of what was shown, or nothing; the ids of the servers that it enables."""
        with transaction.atomic():
            rows.hold()
            now = rows.load()
            then = target(now, wanted, prune=prune)
            if differences(now, then) != shown:
                self._refuse("the registry has changed in the meantime; nothing was done, look again")
            return rows.keep(then, shown)

    def _read(self, file: str) -> tuple[Declared, notation.Lines]:
        path = Path(file)
        try:
            text = sys.stdin.read() if file == "-" else path.read_text(encoding="utf-8")
            return notation.read(text, _Keys(path.parent))
        except OSError as error:
            self._refuse(f"{file}: {error.strerror}")
        except UnicodeDecodeError:
            self._refuse(f"{file} is no text in UTF-8")
        except notation.FleetFileError as error:
            self._refuse("\n".join(f"{file}, {line}" for line in str(error).splitlines()))

    def _show(self, file: str, wanted: Declared, lines: notation.Lines, prune: bool) -> list[Difference]:
        now = rows.load()
        then = target(now, wanted, prune=prune)
        found = differences(now, then)
        try:
            rows.check(then, found)
        except rows.Unfit as unfit:
            self._refuse(f"{file}, line {lines.of(*unfit.path)}: {unfit}")
        for line in told(found):
            self.stdout.write(line)
        left = [] if prune else [f"{section} {name}" for section, name in unnamed(now, wanted)]
        for name, server_id in strangers(then):
            self.stdout.write(f"The class {name} names a server that is not there: {server_id}")
        if left:
            self.stdout.write(f"Not in the file and left alone (--prune removes them): {', '.join(left)}")
        if not found:
            self.stdout.write("No difference.")
        return found

    def _agreed(self, yes: bool) -> bool:
        if yes or not sys.stdin.isatty():
            return True
        return input("Make it so? [y/N] ").strip().lower() in ("y", "yes")

    def _find_models(self, done: Sequence[Difference], enabled: Sequence[str]) -> None:
        """Asks the servers that are enabled, and those that are new or different unless an operator names all that they
        serve; who does not answer is told.
        """
        names = [one.name for one in done if one.section == "servers"]
        whole = Server.objects.filter(registered_by="", models__named_by=ServedModel.NamedBy.OPERATOR)
        silent = Server.objects.filter(server_id__in=names, state__in=CALLED).exclude(pk__in=whole)
        silent = silent | Server.objects.filter(server_id__in=enabled)
        for server, _, complaint in discover_all(silent):
            if complaint:
                self.stdout.write(f"{server}: {complaint}; once it answers: bin/manage server refresh {server}")

    def _refuse(self, reason: str) -> NoReturn:
        """2, since 1 is diff's word for a difference."""
        raise CommandError(reason, returncode=2)


class _Keys:
    """Where servers' keys are; files are sought from the fleet file's own folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, kind: str, where: str) -> str:
        if kind == "api_key_file":
            return key_file.read(self._folder / where)
        if where not in os.environ:
            raise LookupError(f"the environment has no {where}")
        return os.environ[where].strip()
