"""What a failure says of a server by itself, and what the servers beside it let follow from that. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Evidence = Literal["refused", "unreachable", "told", "failed"]
"""The server takes nothing, by its own word; nothing could be sent, which may be the network's doing, or that of names
and certificates; it tells of an error itself, which may be the request's doing; any other failure.
"""


class Group(NamedTuple):
    """The servers of a model, and how many of them traffic alone may take out."""

    may_be_out: int
    servers: Sequence[str]


class Company(NamedTuple):
    """A server among the others of its models."""

    groups: Sequence[Group]
    may_eject: bool
    """Whether traffic alone may take it out: not while it has taken out as many of a group as it may."""
    alone: bool
    """Whether a model has no other."""


NO_MATTER = Company((), may_eject=True, alone=False)
"""For what is told whatever the others do."""
