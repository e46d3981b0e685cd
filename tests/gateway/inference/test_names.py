"""Who asks for a model that isn't there hears which one may be meant, and that costs little."""

import difflib
import time
from collections.abc import Callable

import pytest

from apps.gateway.inference.names import LISTED, no_model
from apps.orchestration.fleet import Fleet, Model
from citadel.caller import Caller

CALLER = Caller("k", "k", "t", "developer", None)


def fleet_of(*names: str) -> Fleet:
    return Fleet(1, {name: Model(name, ()) for name in names}, {})


def told(name: str, *names: str) -> str:
    return no_model(name, fleet_of(*names), "model", CALLER).message


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("lama3.1:8b", "llama3.1:8b"),
        ("llama3.1:8b-q4", "llama3.1:8b"),
        ("Llama3.1:8B", "llama3.1:8b"),
        ("smolm2", "SmolLM2"),
        ("qwen2.5-codr", "qwen2.5-coder"),
        ("gpt-4o-mini", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_told(asked: str, meant: str | None) -> None:
    message = told(asked, "llama3.1:8b", "mistral", "qwen2.5-coder", "SmolLM2", "all-minilm")
    assert (f"Did you mean '{meant}'?" in message) if meant else "mean" not in message


def test_among_too_many_none_is_looked_for() -> None:
    names = [f"model-{number}" for number in range(LISTED + 1)]
    assert "mean" in told("model-x", *names[1:])
    assert "mean" not in told("model-x", *names)


def test_it_takes_a_fraction_of_looking_at_them_all() -> None:
    names = [f"llama{number}.1:{number}b-instruct-q4_K_M" for number in range(LISTED)]
    fleet, asked = fleet_of(*names), "llama777777.1:777b-instruct-q4_K_S"
    all_of_them = quickest(lambda: difflib.get_close_matches(asked, names, n=1))
    assert quickest(lambda: no_model(asked, fleet, "model", CALLER)) < all_of_them / 4


def quickest(work: Callable[[], object]) -> float:
    """Seconds, of several times."""
    took = []
    for _ in range(7):
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    return min(took)
