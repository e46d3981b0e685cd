"""Teams and keys in the console."""

from collections.abc import Callable, Collection
from copy import copy
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import ForeignKey, Q, QuerySet
from django.forms import CharField, ModelForm, Textarea
from django.http import HttpRequest

from apps.gateway.access.console.teams import KeysOfTeams, OfTeams, managed
from apps.gateway.access.keys import life
from apps.gateway.limits.budgets import TEAM
from apps.gateway.models import Assignment, Budget, Key, Membership, Price, Spend, Team
from apps.gateway.spending.amounts import told
from apps.gateway.spending.granting import NOTHING, today, with_spent
from citadel.errors import CitadelError
from citadel.permissions import PERMISSIONS
from citadel.rows import ReadOnly

# Django writes the first letter of a message large: it must be none of an id's.
BEYOND = (
    "The key {key} may do more than you can give, or belongs to a team that is not yours: an administrator can do this."
)


class Members(admin.TabularInline):
    """Who belongs to a team: seen by who sees the team, said by administrators."""

    model = Membership
    autocomplete_fields = ("user",)
    extra = 0

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """With their names, by one query."""
        return super().get_queryset(request).select_related("user", "team")

    def has_view_permission(self, request: HttpRequest, obj: Team | None = None) -> bool:
        """Whoever sees the team: it is looked for among those that one sees before this is asked."""
        return True


@admin.register(Team)
class TeamAdmin(OfTeams):
    """Teams, and who belongs to them."""

    inlines = (Members,)
    list_display = ("slug", "name", "created")
    search_fields = ("slug", "name")
    prepopulated_fields = {"slug": ("name",)}

    def of_teams(self, teams: Collection[str]) -> Q:
        """Themselves."""
        return Q(slug__in=teams)


class Names(CharField):
    """A list of names, written one a line; nothing where there are none."""

    widget = Textarea

    def prepare_value(self, value: Any) -> Any:
        """The lines."""
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        """The list."""
        text = super().to_python(value) or ""
        ProhibitNullCharactersValidator()(text)
        return [name for line in text.splitlines() if (name := line.strip())] or None


class KeyForm(ModelForm):
    """A key's form, with its models as people write them."""

    check_asked: Callable[[Key], None]
    """Raises where who asks may not have a key be like that."""

    allowed_models = Names(required=False, help_text="Names of the models it may use, one a line; empty for all.")
    scopes = Names(
        required=False,
        help_text=f"Permissions that it has at most, one a line: {', '.join(sorted(PERMISSIONS))}. "
        "Empty for all of its role.",
    )
    addresses = Names(
        required=False,
        help_text="Addresses and networks from which it may be used, one a line, such as 10.1.0.0/16; "
        "empty for anywhere.",
    )
    servers = Names(
        required=False,
        help_text="Ids of the servers that it may register and operate where its role lets it, one a line; empty for "
        "all.",
    )
    certificates = Names(
        required=False,
        help_text="SHA-256 fingerprints of client certificates that prove its holder, one a line, as by openssl x509 "
        "-noout -fingerprint -sha256. They count where certificates.header is set.",
    )

    class Meta:
        help_texts = {
            "requests_per_minute": "In any minute. 0 is no limit; empty is limits.client.requests_per_minute.",
            "tokens_per_minute": "In any minute. 0 is no limit; empty is limits.client.tokens_per_minute.",
            "public_key": "Of an Ed25519 pair, in PEM or only what stands between its first and last line: who signs "
            "requests with the private key proves to hold this key.",
            "concurrent": "Requests at once. 0 is no limit; empty is limits.client.concurrent.",
        }

    def _get_validation_exclusions(self) -> set[str]:
        """An end that stays is not looked at: it may be over by now."""
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]  # which every form of Django's has
        return excluded if "expires" in self.changed_data else excluded | {"expires"}

    def clean(self) -> dict[str, Any] | None:
        """ValidationError where the key could do more than who asks may give."""
        cleaned = super().clean() or self.cleaned_data
        if not self.errors:
            asked = copy(self.instance)
            for name, value in cleaned.items():
                setattr(asked, name, value)
            try:
                self.check_asked(asked)
            except CitadelError as error:
                raise ValidationError(error.message, code=error.code) from None
        return cleaned


@admin.register(Key)
class KeyAdmin(KeysOfTeams):
    """Keys: made here, shown once, given other secrets, revoked here."""

    form = KeyForm
    list_display = ("key_id", "name", "team", "role", "created", "expires", "last_used", "revoked")
    list_filter = ("role", ("team", admin.RelatedOnlyFieldListFilter))
    list_select_related = ("team", "use")
    search_fields = ("key_id", "name", "team__slug")
    fields = (
        "name",
        "team",
        "role",
        "scopes",
        "allowed_models",
        "addresses",
        "servers",
        "certificates",
        "public_key",
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent",
        "max_priority",
        "expires",
        "key_id",
        "last_used",
        "revoked",
    )
    readonly_fields = ("key_id", "last_used", "revoked")
    actions = ("rotate", "revoke")

    def get_readonly_fields(self, request: HttpRequest, obj: Key | None = None) -> tuple[str, ...]:
        """Owners of teams give one role, prove nobody's identity, and leave keys where they are."""
        if self.manages_all(request):
            return self.readonly_fields
        return (*self.readonly_fields, "role", "certificates", *(("team",) if obj else ()))

    def get_form(self, request: HttpRequest, obj: Key | None = None, change: bool = False, **kwargs: Any) -> Any:
        """One that knows what who asks may have made of it."""
        form: Any = super().get_form(request, obj, change=change, **kwargs)
        form.check_asked = staticmethod(partial(self.check_asked, request))
        return form

    def formfield_for_foreignkey(self, db_field: ForeignKey, request: HttpRequest, **kwargs: Any) -> Any:
        """Of teams those alone for which one may make keys."""
        if db_field.name == "team" and not self.manages_all(request):
            kwargs["queryset"] = Team.objects.filter(slug__in=managed(request))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Key, form: ModelForm, change: bool) -> None:
        """A new key is shown this once."""
        if not change:
            messages.success(request, f"The new key, shown this once: {_shown(life.give_secret(obj))}")
        super().save_model(request, obj, form, change)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Keys are revoked, not deleted: records name them."""
        return False

    @admin.display(description="Last used", ordering="use__last_used", empty_value="never")
    def last_used(self, key: Key) -> Any:
        """When it last proved who asks, as of a minute ago."""
        return key.use.last_used if hasattr(key, "use") else None

    @admin.action(description="Give another secret; the old one stays good for a day", permissions=["change"])
    def rotate(self, request: HttpRequest, queryset: QuerySet[Key]) -> None:
        """Shows each key with its new secret, this once: a few, and by their ids, which are short."""
        in_force = queryset.filter(revoked=None)
        if self.too_many(request, in_force):
            return
        for key in in_force:
            if not self.has_change_permission(request, key):
                messages.error(request, BEYOND.format(key=key.key_id))
                continue
            plain = life.rotate(key.key_id)
            messages.success(request, f"The new secret of {key.key_id}, shown this once: {_shown(plain)}")

    @admin.action(description="Revoke", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Key]) -> None:
        """Refuses the keys from now on, in every worker within a second."""
        for key in queryset.filter(revoked=None):
            if self.may_revoke(request, key):
                life.revoke(key.key_id)
            else:
                messages.error(request, BEYOND.format(key=key))


class AssignmentForm(ModelForm):
    """A person's servers as people write them."""

    servers = Names(help_text="Ids of servers, one a line, also of some that are yet to come.")


@admin.register(Assignment)
class AssignmentAdmin(admin.ModelAdmin):
    """Who operates some servers alone, instead of all."""

    form = AssignmentForm
    list_display = ("user", "servers")
    list_select_related = ("user",)
    search_fields = ("user__username",)
    autocomplete_fields = ("user",)


@admin.register(Budget)
class BudgetAdmin(OfTeams):
    """What teams and keys may spend, and what they have."""

    list_display = ("holder", "period", "tokens", "money", "spent", "created")
    list_filter = ("period",)
    search_fields = ("=team__slug", "=key__key_id", "=key__team__slug")
    autocomplete_fields = ("team", "key")
    fields = ("team", "key", "period", "tokens", "money", "spent")

    def of_teams(self, teams: Collection[str]) -> Q:
        """Those of teams, and of their keys."""
        return Q(team__slug__in=teams) | Q(key__team__slug__in=teams)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Budget]:
        """With what was spent, by one query for the page."""
        return with_spent(super().get_queryset(request).select_related("team", "key__team"), today())

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Whose it is and its period stay: those of another are another budget."""
        return ("team", "key", "period", "spent") if obj else ("spent",)

    @admin.display(description="Spent in this period", empty_value="-")
    def spent(self, budget: Any) -> str | None:
        """As the records say; nothing of one that is being added."""
        if not budget.pk:
            return None
        return f"{budget.spent_tokens or 0} tokens, {told(budget.spent_money or NOTHING)}"


@admin.register(Price)
class PriceAdmin(admin.ModelAdmin):
    """What models cost; one without a price is free."""

    list_display = ("model", "prompt", "completion", "server_second")
    search_fields = ("model",)


@admin.register(Spend)
class SpendAdmin(OfTeams, ReadOnly):
    """What teams and keys have used, day by day."""

    list_display = ("day", "holder", "requests", "tokens", "money")
    search_fields = ("=holder",)
    search_help_text = "A key's id, or team: and a team's slug."

    def of_teams(self, teams: Collection[str]) -> Q:
        """What teams have used, and their keys."""
        keys = Key.objects.filter(team__slug__in=teams).values("key_id")
        return Q(holder__in=[TEAM + team for team in teams]) | Q(holder__in=keys)


def _shown(plain: str) -> str:
    return f"{plain} (its signing secret: {life.signing_secret(plain)})"
