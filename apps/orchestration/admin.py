"""The fleet in the console."""

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.forms import ModelForm, PasswordInput
from django.http import HttpRequest

from apps.orchestration.discovery import DiscoveryFailed
from apps.orchestration.models import Alias, ServedModel, Server
from apps.orchestration.registry import refresh


class ModelInline(admin.TabularInline):
    """The models of a server."""

    model = ServedModel
    extra = 0


class ServerForm(ModelForm):
    """A server's form; its key is never shown again."""

    class Meta:
        model = Server
        fields = ("server_id", "scheme", "hostname", "port", "base_path", "kind", "state", "weight", "api_key")
        widgets = {"api_key": PasswordInput(render_value=False)}

    def clean_api_key(self) -> str:
        """An empty field keeps the key that is there."""
        given: str = self.cleaned_data["api_key"]
        return given or self.instance.api_key


@admin.register(Server)
class ServerAdmin(admin.ModelAdmin):
    """Registry: add a server, and its models are asked for."""

    form = ServerForm
    list_display = ("server_id", "url", "kind", "state", "weight")
    list_filter = ("kind", "state")
    search_fields = ("server_id", "hostname")
    inlines = (ModelInline,)
    actions = ("enable", "drain", "disable", "find_models")

    def save_related(self, request: HttpRequest, form: ModelForm, formsets: object, change: bool) -> None:
        """A server without models is asked for them."""
        super().save_related(request, form, formsets, change)
        if not form.instance.models.exists():
            self._ask(request, form.instance)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Gives traffic to the servers."""
        queryset.update(state=Server.State.ACTIVE)

    @admin.action(description="Drain: no new requests", permissions=["change"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Lets what runs end and sends nothing new."""
        queryset.update(state=Server.State.DRAINING)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Takes the servers out."""
        queryset.update(state=Server.State.DISABLED)

    @admin.action(description="Ask for models", permissions=["change"])
    def find_models(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Asks each server which models it holds."""
        for server in queryset:
            self._ask(request, server)

    def _ask(self, request: HttpRequest, server: Server) -> None:
        try:
            found = refresh(server)
        except (DiscoveryFailed, ValidationError) as failure:
            messages.warning(request, f"{server}: {failure}")
        else:
            messages.success(request, f"{server}: {', '.join(model.name for model in found) or 'no models'}")


@admin.register(Alias)
class AliasAdmin(admin.ModelAdmin):
    """Names that stand for models."""

    list_display = ("name", "model")
    search_fields = ("name", "model")
