"""What every section of the configuration is made of: bounds of values, and what is said where one is wrong."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

USUAL_PORTS = {"http": 80, "https": 443}

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class ConfigError(ValueError):
    """The configuration can't be used; the message names the place and what to do."""


class Section(BaseModel):
    """A branch of the tree: frozen, and an unknown key in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def networks(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same names, where each is a word for networks or a network; ConfigError."""
    from citadel.addresses import check_networks

    check_networks(names)
    return names
