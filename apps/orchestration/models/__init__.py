"""The fleet's rows."""

from apps.orchestration.models.epoch import Epoch
from apps.orchestration.models.event import Event
from apps.orchestration.models.hook import Hold, Hook, HookMark, HookRule, ReceivedWebhook
from apps.orchestration.models.model import Alias, ServedModel
from apps.orchestration.models.model_class import ModelClass
from apps.orchestration.models.server import Server
from apps.orchestration.models.subscription import Delivery, Subscription

__all__ = [
    "Alias",
    "Delivery",
    "Epoch",
    "Event",
    "Hold",
    "Hook",
    "HookMark",
    "HookRule",
    "ModelClass",
    "ReceivedWebhook",
    "ServedModel",
    "Server",
    "Subscription",
]
