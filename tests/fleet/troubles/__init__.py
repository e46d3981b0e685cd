"""All the ways to misbehave; importing this package fills the catalogue."""

from . import endings, errors, lies, listening, oddities, streams, timing, wire
from .trouble import CATALOGUE, Trouble, TroubleSpecError, parse

__all__ = [
    "CATALOGUE",
    "Trouble",
    "TroubleSpecError",
    "endings",
    "errors",
    "lies",
    "listening",
    "oddities",
    "parse",
    "streams",
    "timing",
    "wire",
]
