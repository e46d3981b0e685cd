"""`bin/manage key create|list|rotate|revoke`: API keys from the command line."""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.utils import timezone

from apps.gateway.access.keys.life import LONGEST_GRACE, USUAL_GRACE, issue, revoke, rotate, signing_secret
from apps.gateway.models import Key, Team
from apps.orchestration import fleet
from citadel import command

SIGNING_HELP = "print the secret that its requests may be signed by, too, on a second line"


class Command(command.Command):
    """Makes, lists, renews and revokes API keys."""

    help = "Makes, lists, renews and revokes API keys."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The verbs and what each takes."""
        verbs = parser.add_subparsers(dest="verb", required=True)
        create = verbs.add_parser("create", help="make a key and print it, this once, alone on standard output")
        create.add_argument("--team", required=True, help="its slug; made if it is new, which is told")
        create.add_argument("--name", required=True)
        create.add_argument(
            "--role",
            choices=Key.Role.values,
            default=Key.Role.DEVELOPER,
            help="developer unless said; server for machines that register themselves, and their agents",
        )
        create.add_argument("--model", action="append", help="a model that it may use; repeat for more; all without")
        create.add_argument("--scope", action="append", help="a permission that it has at most; repeat for more")
        create.add_argument("--address", action="append", help="an address or network it may be used from; repeatable")
        create.add_argument("--server", action="append", help="one that it may register and operate; all without")
        create.add_argument(
            "--certificate", action="append", help="SHA-256 fingerprint of a client certificate; repeatable"
        )
        create.add_argument("--public-key", help="an Ed25519 public key in PEM, for requests signed by its private one")
        create.add_argument("--signing-secret", action="store_true", help=SIGNING_HELP)
        create.add_argument("--requests-per-minute", type=_count, help="0 for no limit")
        create.add_argument("--tokens-per-minute", type=_count, help="0 for no limit")
        create.add_argument("--concurrent", type=_count, help="requests at once; 0 for no limit")
        create.add_argument(
            "--max-priority",
            choices=Key.Priority.values,
            default=Key.Priority.HIGH,
            help="the highest that its requests may claim; high unless said",
        )
        create.add_argument(
            "--expires",
            type=_moment,
            help="when it ends, such as 2030-01-31 or 2030-01-31T18:00+01:00; UTC unless said",
        )
        verbs.add_parser("list", help="show all keys")
        rotate = verbs.add_parser("rotate", help="give a key another secret and print the key, this once")
        rotate.add_argument("key_id")
        rotate.add_argument("--signing-secret", action="store_true", help=SIGNING_HELP)
        rotate.add_argument(
            "--grace",
            type=_seconds,
            default=USUAL_GRACE,
            metavar="SECONDS",
            help=f"for which the old one stays good; {int(USUAL_GRACE.total_seconds())} unless said, 0 if it leaked",
        )
        verbs.add_parser("revoke", help="refuse a key from now on").add_argument("key_id")

    def handle(self, *_args: Any, verb: str, **options: Any) -> None:
        """Runs one verb."""
        getattr(self, f"_{verb}")(options)

    def _create(self, options: dict[str, Any]) -> None:
        is_new = not Team.objects.filter(slug=options["team"]).exists()
        try:
            key = issue(
                options["team"],
                options["name"],
                options["role"],
                allowed_models=options["model"],
                scopes=options["scope"],
                addresses=options["address"],
                servers=options["server"],
                certificates=options["certificate"],
                public_key=options["public_key"],
                requests_per_minute=options["requests_per_minute"],
                tokens_per_minute=options["tokens_per_minute"],
                concurrent=options["concurrent"],
                max_priority=options["max_priority"],
                expires=options["expires"],
            )
        except ValidationError as error:
            raise CommandError(_by_option(error)) from None
        self._show(key, options)
        if is_new:
            self.stderr.write(f"Note: made the new team '{options['team']}'.", self.style.WARNING)
        now = fleet.load()
        if unknown := [name for name in options["model"] or () if now.find(name) is None]:
            self.stderr.write(f"Note: no server has {', '.join(unknown)} at present.", self.style.WARNING)

    def _list(self, _options: dict[str, Any]) -> None:
        keys = list(Key.objects.select_related("team", "use"))
        self.stdout.write("key\tteam\tname\trole\tstate\tlast used")
        for key in keys:
            used = key.use.last_used.isoformat(timespec="seconds") if hasattr(key, "use") else "never"
            self.stdout.write(f"{key.key_id}\t{key.team.slug}\t{key.name}\t{key.role}\t{key.state}\t{used}")

    def _rotate(self, options: dict[str, Any]) -> None:
        try:
            self._show(rotate(options["key_id"], options["grace"]), options)
        except Key.DoesNotExist:
            raise _no_key(options) from None

    def _show(self, key: str, options: dict[str, Any]) -> None:
        self.stdout.write(key)
        if options["signing_secret"]:
            self.stdout.write(signing_secret(key))

    def _revoke(self, options: dict[str, Any]) -> None:
        if not revoke(options["key_id"]):
            raise _no_key(options)
        self.stdout.write(f"{options['key_id']}: revoked, refused within a second")


def _no_key(options: dict[str, Any]) -> CommandError:
    return CommandError(f"no key {options['key_id']!r} in force; see: bin/manage key list")


def _seconds(text: str) -> timedelta:
    most = int(LONGEST_GRACE.total_seconds())
    if (seconds := _count(text)) > most:
        raise ArgumentTypeError(f"{text} is more than {most} seconds")
    return timedelta(seconds=seconds)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return number


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no date like 2030-01-31 or 2030-01-31T18:00+01:00") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= timezone.now():
        raise ArgumentTypeError(f"{text} is over")
    return moment


def _by_option(error: ValidationError) -> str:
    """What is wrong with a key, by what was typed."""
    options = {
        "slug": "team",
        "allowed_models": "model",
        "scopes": "scope",
        "addresses": "address",
        "servers": "server",
        "certificates": "certificate",
    }
    found = error.message_dict.items()
    return "; ".join(f"--{options.get(field, field).replace('_', '-')}: {' '.join(said)}" for field, said in found)
