"""Teams and keys in the console."""

from typing import Any

from django.contrib import admin, messages
from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import QuerySet
from django.forms import CharField, ModelForm, Textarea
from django.http import HttpRequest
from django.utils import timezone

from apps.gateway.access.keys import Digester, mint
from apps.gateway.models import Key, Team


@admin.register(Team)
class TeamAdmin(admin.ModelAdmin):
    """Teams."""

    list_display = ("slug", "name", "created")
    search_fields = ("slug", "name")
    prepopulated_fields = {"slug": ("name",)}


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

    allowed_models = Names(required=False, help_text="Names of the models it may use, one a line; empty for all.")

    class Meta:
        help_texts = {
            "requests_per_minute": "In any minute. 0 is no limit; empty is limits.client.requests_per_minute.",
            "concurrent": "Requests at once. 0 is no limit; empty is limits.client.concurrent.",
        }


@admin.register(Key)
class KeyAdmin(admin.ModelAdmin):
    """Keys: made here, shown once, revoked here."""

    form = KeyForm
    list_display = ("key_id", "name", "team", "role", "created", "expires", "revoked")
    list_filter = ("role", "team")
    list_select_related = ("team",)
    search_fields = ("key_id", "name", "team__slug")
    fields = (
        "name",
        "team",
        "role",
        "allowed_models",
        "requests_per_minute",
        "concurrent",
        "max_priority",
        "expires",
        "key_id",
        "revoked",
    )
    readonly_fields = ("key_id", "revoked")
    actions = ("revoke",)

    def save_model(self, request: HttpRequest, obj: Key, form: ModelForm, change: bool) -> None:
        """A new key is shown this once."""
        if not change:
            from django.conf import settings

            plain, obj.key_id = mint()
            obj.digest = Digester(settings.SECRET_KEY)(plain.encode())
            messages.success(request, f"The new key, shown this once: {plain}")
        super().save_model(request, obj, form, change)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Keys are revoked, not deleted: records name them."""
        return False

    @admin.action(description="Revoke", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Key]) -> None:
        """Refuses the keys from now on, in every worker within a second."""
        queryset.filter(revoked=None).update(revoked=timezone.now())
