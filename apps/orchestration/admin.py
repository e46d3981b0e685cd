"""The fleet in the console."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import transaction
from django.db.models import JSONField, QuerySet
from django.forms import BaseModelFormSet, BooleanField, ModelForm, PasswordInput
from django.http import HttpRequest

from apps.orchestration.fleet import CALLED
from apps.orchestration.health.glance import health_in_words
from apps.orchestration.models import Alias, Event, ModelClass, ServedModel, Server
from apps.orchestration.moving import moves, unless_said, without_version
from apps.orchestration.registry import FACTS, arrived, discover_all, keep_state, remove, set_state, unify_names
from apps.orchestration.webhooks import admin as webhooks_admin  # noqa: F401  # which registers its pages
from citadel.rows import Discreet, ReadOnly


class ModelInline(admin.TabularInline):
    """The models of a server."""

    model = ServedModel
    fields = ("name", "context_length", "capabilities", "named_by", "said")
    readonly_fields = ("named_by", "said")
    extra = 0


class EmptiedForm(ModelForm):
    """A form whose lists may be emptied by leaving nothing in them."""

    def clean(self) -> dict[str, Any] | None:
        """What stands there when nothing does."""
        cleaned = super().clean() or self.cleaned_data
        for field in self._meta.model._meta.fields:
            if isinstance(field, JSONField) and not field.null and cleaned.get(field.name, 0) is None:
                cleaned[field.name] = field.get_default()
        return cleaned


class ServerForm(EmptiedForm):
    """A server's form; its key is never shown again."""

    ask = False
    """Whether the server is to be asked what it is and holds, by the state that was chosen."""
    moved = False
    """Whether it gets another address."""
    remove_key = BooleanField(required=False, help_text="Has the server no key; one that is typed in replaces it.")

    class Meta:
        model = Server
        fields = (
            "server_id",
            "scheme",
            "hostname",
            "port",
            "base_path",
            "kind",
            "role",
            "state",
            "weight",
            "max_concurrent",
            "capabilities",
            "services",
            "api_key",
            "remove_key",
            "health_endpoint",
            "models_endpoint",
            "metrics_endpoint",
        )
        widgets = {"api_key": PasswordInput(render_value=False)}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if "state" in self.fields:  # who may only look has no fields
            self.fields["state"].show_hidden_initial = True  # a webhook may change it while the page is open

    def clean(self) -> dict[str, Any]:
        """A kind that is left as it is shown, and an empty key, are none that is said."""
        cleaned = super().clean() or self.cleaned_data
        cleaned |= without_version(cleaned)
        self.moved = self.instance.pk is not None and moves(self.instance, cleaned)
        before = unless_said(self.instance, cleaned)
        cleaned["api_key"] = cleaned.get("api_key") or ("" if cleaned["remove_key"] else before["api_key"])
        if "kind" not in self.changed_data:
            cleaned["kind"] = before["kind"]
        return cleaned


class ServerList(ChangeList):
    """The list of servers, with one look at the board for all of them."""

    def get_results(self, request: HttpRequest) -> None:
        """The rows of the page, each with how the fleet is."""
        super().get_results(request)
        in_words = health_in_words()
        for server in self.result_list:
            server.in_words = in_words


@admin.register(Server)
class ServerAdmin(Discreet):
    """Registry: add a server, and it is asked what it is and which models it holds."""

    form = ServerForm
    secrets = ("api_key", "remove_key")
    list_display = ("server_id", "url", "kind", "role", "state", "health", "weight", "max_concurrent")
    list_filter = ("kind", "state")
    search_fields = ("server_id", "hostname", "role")
    readonly_fields = ("health", "registered_by", "registered")
    inlines = (ModelInline,)
    actions = ("enable", "drain", "disable", "find_models")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The one that looks at the board once for all of its rows."""
        return ServerList

    @admin.display(description="Health")
    def health(self, server: Server) -> str:
        """How it is, and who found that; nothing of one that is being added."""
        if not server.server_id:
            return "-"
        in_words: Callable[[str], str] = getattr(server, "in_words", None) or health_in_words()
        return in_words(server.server_id)

    def save_model(self, request: HttpRequest, obj: Server, form: ServerForm, change: bool) -> None:
        """Tells what becomes of a server. A state that is chosen is an operator's word; one that is left as the page
        shows it is none.
        """
        if not change:
            super().save_model(request, obj, form, change)
            return
        wanted, obj.state = obj.state, Server.objects.select_for_update().get(pk=obj.pk).state
        super().save_model(request, obj, form, change)
        if "state" in form.changed_data:
            form.ask = keep_state(obj.server_id, wanted, _name(request))
            obj.state = wanted

    def save_formset(self, request: HttpRequest, form: Any, formset: BaseModelFormSet, change: bool) -> None:
        """A model that somebody types in stays, though the server may not list it; so does what is said of one."""
        for model_form in formset.extra_forms:
            model_form.instance.named_by = ServedModel.NamedBy.OPERATOR
        for model_form in formset.forms:
            held, changed = model_form.instance, FACTS.keys() & model_form.changed_data
            given = {name for name in changed if getattr(held, name) != FACTS[name]}
            held.said = sorted(({*held.said} - changed) | given)
        super().save_formset(request, form, formset, change)

    def save_related(self, request: HttpRequest, form: ServerForm, formsets: object, change: bool) -> None:
        """A server without models is asked for them, one that moves, and one that nobody has asked while it was not
        called; none that is not to be called: nobody may have approved its address.
        """
        super().save_related(request, form, formsets, change)
        if form.moved or not change:
            arrived(form.instance)
        unify_names(form.instance)
        if form.instance.state in CALLED and (form.ask or form.moved or not form.instance.models.exists()):
            transaction.on_commit(partial(self._ask, request, [form.instance]))  # not while the epoch's row is held

    def delete_model(self, request: HttpRequest, obj: Server) -> None:
        """Takes it out as everybody else does."""
        remove(obj.server_id, _name(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """The same for several."""
        for server in queryset:
            remove(server.server_id, _name(request))

    def has_change_permission(self, request: HttpRequest, obj: Server | None = None) -> bool:
        """Whether somebody may change an entry; without one, whether there may be such."""
        return request.user.has_perm("orchestration.change_server", obj)

    def has_delete_permission(self, request: HttpRequest, obj: Server | None = None) -> bool:
        """The same of taking it out."""
        return request.user.has_perm("orchestration.delete_server", obj)

    def has_operate_permission(self, request: HttpRequest, obj: Server | None = None) -> bool:
        """Whether somebody may act on servers; who may change all of an entry may."""
        return request.user.has_perm("orchestration.operate_server", obj) or self.has_change_permission(request, obj)

    @admin.action(description="Enable", permissions=["operate"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Gives traffic to the servers."""
        self._set(request, queryset, Server.State.ACTIVE)

    @admin.action(description="Drain: no new requests", permissions=["operate"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Lets what runs end and sends nothing new."""
        self._set(request, queryset, Server.State.DRAINING)

    @admin.action(description="Disable", permissions=["operate"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Takes the servers out."""
        self._set(request, queryset, Server.State.DISABLED)

    @admin.action(description="Ask for models", permissions=["operate"])
    def find_models(self, request: HttpRequest, queryset: QuerySet[Server]) -> None:
        """Asks each server what it is and which models it holds; which are not to be called is told."""
        self._ask(request, self._operated(request, queryset))

    def _operated(self, request: HttpRequest, queryset: QuerySet[Server]) -> list[Server]:
        """Those of the servers on which somebody may act; which of them not is told."""
        chosen = list(queryset)
        operated = [server for server in chosen if self.has_operate_permission(request, server)]
        if others := ", ".join(server.server_id for server in chosen if server not in operated):
            messages.error(request, f"You are not assigned to {others}: nothing was done there.")
        return operated

    def _set(self, request: HttpRequest, queryset: QuerySet[Server], state: Server.State) -> None:
        servers = self._operated(request, queryset)
        turned = [set_state(server.server_id, state, _name(request)) for server in servers]
        self._ask(request, [server for server, ask in turned if ask])

    def _ask(self, request: HttpRequest, servers: Iterable[Server]) -> None:
        for server, found, complaint in discover_all(servers):
            if complaint:
                messages.warning(request, f"{server}: {complaint}")
                continue
            models = ", ".join(model.name for model in found) or "no models"
            messages.success(request, f"{server} at {server.url}: {models}")


@admin.register(ModelClass)
class ModelClassAdmin(admin.ModelAdmin):
    """How requests for a class of models find their server."""

    form = EmptiedForm
    list_display = ("name", "position", "patterns", "capability", "fallback", "strategy", "hedge_ms", "cache_chat")
    search_fields = ("name",)


@admin.register(Alias)
class AliasAdmin(admin.ModelAdmin):
    """Names that stand for models."""

    list_display = ("name", "model")
    search_fields = ("name", "model")


@admin.register(Event)
class EventAdmin(ReadOnly):
    """What happened to the fleet: to be read."""

    list_display = ("at", "type", "server_id", "data")
    list_filter = ("type",)
    search_fields = ("server_id",)


def _name(request: HttpRequest) -> str:
    """Who did it, as events tell it."""
    return f"user {request.user.get_username()}"
