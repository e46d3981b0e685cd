"""Webhooks in the console."""

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from apps.orchestration.models import Delivery, Hook, HookRule, ReceivedWebhook, Subscription
from apps.orchestration.webhooks import credentials, outgoing, signing, subscribing
from citadel.rows import Discreet, ReadOnly


class RuleInline(admin.TabularInline):
    """What reports of a type lead to."""

    model = HookRule
    extra = 0


@admin.register(Hook)
class HookAdmin(Discreet):
    """Types of webhooks that come in. Their credentials are made here and shown once."""

    secrets = ("token_digest", "salt")
    list_display = ("name", "enabled", "description", "has_bearer", "has_secret")
    list_filter = ("enabled",)
    search_fields = ("name",)
    inlines = (RuleInline,)
    actions = ("make_bearer", "make_secret")

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, Any, Any, list[str]]:
        """What goes with types that are deleted, and what is in the way, with what to do about that."""
        deleted, counts, _, protected = super().get_deleted_objects(objs, request)
        # What was received by it goes with it, and is deleted by nobody alone.
        return deleted, counts, set(), [f"{held}: enable this server first" for held in protected]

    @admin.display(boolean=True, description="bearer")
    def has_bearer(self, hook: Hook) -> bool:
        """Whether it has a bearer of its own."""
        return bool(hook.token_digest)

    @admin.display(boolean=True, description="signed")
    def has_secret(self, hook: Hook) -> bool:
        """Whether it has a secret for signatures."""
        return bool(hook.salt)

    @admin.action(description="Make a new bearer, which ends the old one", permissions=["change"])
    def make_bearer(self, request: HttpRequest, queryset: QuerySet[Hook]) -> None:
        """Shows it once."""
        if self.too_many(request, queryset):
            return
        for hook in queryset:
            messages.success(request, f"The new bearer of {hook}, shown this once: {credentials.new_token(hook)}")

    @admin.action(description="Make a new signing secret, which ends the old one", permissions=["change"])
    def make_secret(self, request: HttpRequest, queryset: QuerySet[Hook]) -> None:
        """Shows it once."""
        if self.too_many(request, queryset):
            return
        for hook in queryset:
            secret = credentials.new_secret(hook, settings.SECRET_KEY)
            messages.success(request, f"The new secret of {hook}, shown this once: {secret}")


@admin.register(ReceivedWebhook)
class ReceivedAdmin(ReadOnly):
    """What came in."""

    list_display = ("at", "hook", "sender", "message_id", "outcome", "actions")
    list_filter = ("hook", "outcome")
    list_select_related = ("hook",)
    search_fields = ("=message_id", "=sender")


class SubscriptionForm(ModelForm):
    """A subscription's form: events are sent only where that is allowed."""

    class Meta:
        model = Subscription
        fields = ("url", "events", "description", "enabled")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if "enabled" in self.fields:  # who may only look has no fields
            # its receiver may say that it is gone while the page is open
            self.fields["enabled"].show_hidden_initial = True

    def clean_url(self) -> str:
        """The address, if it may be called."""
        url: str = self.cleaned_data["url"]
        try:
            subscribing.check_address(url)
        except ValidationError as error:
            raise ValidationError(error.message_dict["url"]) from None
        return url


@admin.register(Subscription)
class SubscriptionAdmin(Discreet):
    """Who gets events."""

    form = SubscriptionForm
    secrets = ("salt", "previous_salt")
    list_display = ("subscription_id", "url", "enabled", "failures", "disabled_reason", "created")
    list_filter = ("enabled",)
    search_fields = ("subscription_id", "url", "description")
    actions = ("new_secret", "replay")

    def save_model(self, request: HttpRequest, obj: Subscription, form: ModelForm, change: bool) -> None:
        """The secret of a new one is shown this once; of one that is there only what was changed is written."""
        if change:
            subscribing.keep(obj, form.changed_data)
            return
        super().save_model(request, obj, form, change)
        self._show(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, Any, Any, list[str]]:
        """What is to be confirmed: any number of deliveries goes with it, which nobody deletes alone."""
        return [f"{one}, with all its deliveries" for one in objs], {"subscriptions": len(objs)}, set(), []

    def delete_model(self, request: HttpRequest, obj: Subscription) -> None:
        """Ends it as the API does."""
        subscribing.end(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """The same for several."""
        for subscription in queryset:
            subscribing.end(subscription)

    @admin.action(description="New secret; the old one is good for another day", permissions=["change"])
    def new_secret(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Shows it once."""
        if self.too_many(request, queryset):
            return
        for subscription in queryset:
            outgoing.rotate(subscription)
            self._show(request, subscription)

    @admin.action(description="Send again what was given up", permissions=["change"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """All of it."""
        replayed = sum(map(outgoing.replay, queryset))
        messages.success(request, f"{replayed} deliveries will be sent again.")

    def _show(self, request: HttpRequest, subscription: Subscription) -> None:
        secret = signing.secret_of(settings.SECRET_KEY, subscription.salt)
        messages.success(request, f"The secret of {subscription}, shown this once: {secret}")


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly):
    """What was sent, and what became of it."""

    list_display = ("created", "subscription", "type", "state", "attempts", "next_at", "last_status", "last_error")
    list_filter = ("state", "type")
    list_select_related = ("subscription",)
    search_fields = ("=subscription__subscription_id",)
    actions = ("replay",)

    @admin.action(description="Send again")
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Each under the id that it had."""
        if not request.user.has_perm("orchestration.change_subscription"):
            messages.error(request, "Who may change subscriptions may send their events again.")
            return
        replayed = sum(outgoing.replay(one.subscription, one.pk) for one in queryset.select_related("subscription"))
        messages.success(request, f"{replayed} deliveries will be sent again.")
