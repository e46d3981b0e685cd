"""The fleet's rows."""

from apps.orchestration.models.epoch import Epoch
from apps.orchestration.models.model import Alias, ServedModel
from apps.orchestration.models.server import Server

__all__ = ["Alias", "Epoch", "ServedModel", "Server"]
