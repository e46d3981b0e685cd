"""The life of a key: made, given a new secret, revoked; by API, console and command line alike."""

from datetime import datetime, timedelta
from typing import TypedDict, Unpack

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from apps.gateway.access.keys.shape import Digester, id_of, mint
from apps.gateway.access.signatures.secret import SigningSecrets
from apps.gateway.models import Key, Team

USUAL_GRACE, LONGEST_GRACE = timedelta(days=1), timedelta(days=30)
"""For which the secret before a rotation stays good."""


class Restrictions(TypedDict, total=False):
    """What a key may have beside team, name and role; what isn't said is the model's default."""

    allowed_models: list[str] | None
    scopes: list[str] | None
    addresses: list[str] | None
    servers: list[str] | None
    certificates: list[str] | None
    public_key: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    max_priority: str
    expires: datetime | None


def issue(team: str, name: str, role: str = "developer", **restrictions: Unpack[Restrictions]) -> str:
    """Makes a key, and the team if it is new; gives the key, which is shown this once and kept nowhere.

    ValidationError when a value is wrong; then neither is made.
    """
    Team(slug=team, name=team).clean_fields(exclude=("name",))  # which has room for any slug
    with transaction.atomic():
        owner, _ = Team.objects.get_or_create(slug=team, defaults={"name": team})
        key = Key(name=name, team=owner, role=role, **restrictions)
        plain = give_secret(key)
        key.full_clean()
        key.save()
    return plain


def give_secret(key: Key) -> str:
    """A secret for a key that has none yet, and an id with it; saves nothing."""
    plain, key.key_id = mint()
    key.digest = _digest(plain)
    return plain


def signing_secret(plain: str) -> str:
    """What requests of that key are signed by: shown with the key, and kept as little."""
    return SigningSecrets(settings.SECRET_KEY)(id_of(plain), _digest(plain)).decode()


def rotate(key_id: str, grace: timedelta = USUAL_GRACE) -> str:
    """Gives a key in force another secret and gives it as `issue` does; the one until now stays good for `grace`, the
    one before that no longer. Key.DoesNotExist where no such key is in force.
    """
    plain, _ = mint(key_id)
    with transaction.atomic():
        key = Key.objects.select_for_update().get(key_id=key_id, revoked=None)
        key.former_digest = key.digest if grace else None
        key.former_until = timezone.now() + grace if grace else None
        key.digest = _digest(plain)
        key.save(update_fields=["digest", "former_digest", "former_until"])
    return plain


def is_good(key: Key, digest: bytes) -> bool:
    """Whether a key as the database has it is proved by the secret of that digest: the one in force, or still good."""
    return digest == key.digest or (
        digest == key.former_digest and key.former_until is not None and key.former_until > timezone.now()
    )


def revoke(*key_ids: str) -> int:
    """Has keys refused from now on, by every worker within a second; how many of them were still in force."""
    return Key.objects.filter(key_id__in=key_ids, revoked=None).update(revoked=timezone.now())


def _digest(plain: str) -> bytes:
    return Digester(settings.SECRET_KEY)(plain.encode())
