"""A declared fleet: what another becomes by it, what is different, and that YAML keeps every word of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from apps.orchestration.fleet_file import notation
from apps.orchestration.fleet_file.declared import (
    SECTIONS,
    Alias,
    Class,
    Declared,
    Held,
    Server,
    differences,
    target,
    told,
    unnamed,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = st.sampled_from(["a", "b-1", "no", "1", "c:d", "ü"]) | WORDS
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
LABELS = st.lists(WORDS, max_size=3) | st.dictionaries(WORDS, VALUES, max_size=3)
LENGTHS = st.none() | st.integers(0, 10**6)


HELD = st.builds(Held, LENGTHS, WORDS, st.none() | st.lists(WORDS, max_size=3))


def servers(complete: bool) -> st.SearchStrategy[Server]:
    silent = st.nothing() if complete else st.none()
    return st.builds(
        Server,
        hostname=WORDS,
        port=st.integers(1, 65535),
        scheme=st.sampled_from(["http", "https"]),
        kind=silent | st.sampled_from(["", "openai", "ollama", "http"]),
        role=WORDS,
        state=silent | st.sampled_from(["active", "draining", "disabled"]),
        weight=st.integers(1, 9),
        capabilities=LABELS,
        services=LABELS,
        models=silent | st.dictionaries(NAMES, HELD, max_size=3),
        api_key=silent | st.sampled_from(["", "secret-number-1", "secret-number-2"]),
    )


CLASSES = st.builds(
    Class,
    position=st.integers(0, 200),
    patterns=st.lists(WORDS, max_size=2),
    fallback=st.booleans(),
    shares=st.dictionaries(NAMES, st.integers(1, 9), max_size=2),
    hedge_ms=LENGTHS,
    cache_chat=st.booleans(),
)


def fleets(complete: bool) -> st.SearchStrategy[Declared]:
    silent = st.nothing() if complete else st.none()
    sections = (servers(complete), CLASSES, st.builds(Alias, WORDS))
    return st.builds(Declared, *(silent | st.dictionaries(NAMES, one, max_size=3) for one in sections))


REGISTRY, FILE = fleets(complete=True), fleets(complete=False)


def no_reference(_kind: str, where: str) -> str:
    raise LookupError(f"nothing is known of {where}")


@given(REGISTRY, st.booleans())
def test_what_is_exported_changes_nothing_when_applied(now: Declared, prune: bool) -> None:
    written = notation.write(now)
    assert "secret-number" not in written
    read, _ = notation.read(written, no_reference)
    assert differences(now, target(now, read, prune=prune)) == []


@given(REGISTRY, st.data())
def test_what_is_exported_brings_back_states_and_models_that_have_become_others(
    then: Declared, data: st.DataObject
) -> None:
    """As after a drain, or where an operator has named models in the console."""
    entries = {
        name: data.draw(servers(complete=True).map(lambda now, one=one: structs.replace(now, **_place(one))))
        for name, one in (then.servers or {}).items()
    }
    read, _ = notation.read(notation.write(then), no_reference)
    made = target(Declared(servers=entries), read).section("servers")
    for name, one in (then.servers or {}).items():
        assert isinstance(got := made[name], Server)
        assert (got.state, got.models) == (one.state, one.models)


def _place(server: Server) -> dict[str, Any]:
    return {name: getattr(server, name) for name in ("hostname", "port", "scheme", "base_path")}


@given(REGISTRY)
def test_what_is_exported_makes_the_same_out_of_nothing(now: Declared) -> None:
    read, _ = notation.read(notation.write(now), no_reference)
    made = target(Declared(), read)
    left = {change.field for difference in differences(made, now) for change in difference.changes}
    assert left <= {"api_key"}
    assert notation.write(made).replace("  # It has an api_key.\n", "") == notation.write(now).replace(
        "    # It has an api_key.\n", ""
    )


@given(REGISTRY, FILE, st.booleans())
def test_twice_is_once(now: Declared, wanted: Declared, prune: bool) -> None:
    then = target(now, wanted, prune=prune)
    assert target(then, wanted, prune=prune) == then
    assert differences(then, then) == []
    assert bool(differences(now, then)) == (any(now.section(one) != then.section(one) for one in SECTIONS))


@given(REGISTRY, FILE)
def test_what_the_file_does_not_name_is_left_alone_or_pruned(now: Declared, wanted: Declared) -> None:
    kept, pruned = target(now, wanted), target(now, wanted, prune=True)
    for section, name in unnamed(now, wanted):
        assert kept.section(section)[name] == now.section(section)[name]
        assert name not in pruned.section(section)
    for section in SECTIONS:
        if getattr(wanted, section) is None:
            assert kept.section(section) == pruned.section(section) == now.section(section)
        else:
            assert pruned.section(section).keys() == wanted.section(section).keys()


@given(REGISTRY, FILE, st.booleans())
def test_no_secret_is_told(now: Declared, wanted: Declared, prune: bool) -> None:
    found = differences(now, target(now, wanted, prune=prune))
    assert "secret-number" not in "\n".join(told(found))
    assert "secret-number" not in repr(found)


def test_what_is_said_of_a_difference() -> None:
    now = Declared(
        servers={
            "one": Server(
                hostname="h", port=1, state="draining", models={"m": Held(4096, ""), "n": Held()}, api_key="k"
            ),
            "two": Server(hostname="h", port=2, state="active", models={}, api_key=""),
        },
        aliases={"x": Alias("m")},
    )
    wanted = Declared(
        servers={
            "one": Server(hostname="h", port=1, weight=3, models={"m": Held(8192)}, api_key="other"),
            "three": Server(hostname="h", port=3, role="new"),
        },
        aliases={"x": Alias("n")},
    )
    assert list(told(differences(now, target(now, wanted)))) == [
        "~ server one",
        "    weight: 1 → 3",
        "    api_key: (hidden) → (hidden)",
        '    model m: {"context_length":4096} → {"context_length":8192}',
        "    model n: {} → nothing",
        "+ server three",
        '    hostname: "h"',
        "    port: 3",
        '    role: "new"',
        "~ alias x",
        '    model: "m" → "n"',
    ]
    assert list(told(differences(now, target(now, wanted, prune=True))))[-3:-2] == ["- server two"]


GOOD = "servers:\n  one:\n    hostname: h\n    port: 80\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server: {}\n", "line 1: unknown key 'server'; did you mean 'servers'?"),
        (f"{GOOD}    wieght: 3\n", "line 5: unknown key 'wieght'; did you mean 'weight'?"),
        (f"{GOOD}    xyzzy: 3\n", "line 5: unknown key 'xyzzy'; known: hostname, port"),
        (f"{GOOD}    api_key: secret\n", "line 5: a server's api_key does not stand in this file"),
        (f"{GOOD}    weight: heavy\n", "line 5: weight: Expected `int`, got `str`"),
        (f"{GOOD}    kind: toaster\n", "line 5: kind: Invalid enum value 'toaster'"),
        (f"{GOOD}    weight: 1\n    weight: 2\n", "line 6: the key 'weight' is there twice"),
        (f"{GOOD}  one:\n    hostname: g\n    port: 1\n", "line 5: the key 'one' is there twice"),
        (f"{GOOD}    models: m\n", "line 5: models is a list of names"),
        (f"{GOOD}    models: [m, m]\n", "line 5: the model 'm' is there twice"),
        (
            f"{GOOD}    models:\n    - {{name: m, context: 1}}\n",
            "line 6: unknown key 'context'; did you mean 'context_l",
        ),
        (f"{GOOD}    models:\n    - {{context_length: 1}}\n", "line 6: a model needs a name"),
        (f"{GOOD}    models:\n    - 7\n", "line 6: name: Expected `str`, got `int`"),
        (f"{GOOD}    api_key_env: NOWHERE\n", "line 5: api_key_env: nothing is known of NOWHERE"),
        (f"{GOOD}    api_key_file: 7\n", "line 5: api_key_file: Expected `str`, got `int`"),
        ("servers:\n  one:\n    hostname: h\n", "line 2: servers.one needs port"),
        ("servers:\n  1: {hostname: h, port: 80}\n", "line 2: the key 1 is not text; put it in quotes"),
        ("servers: [one]\n", "line 1: servers must hold keys and values"),
        ("- one\n", "line 1: the file must hold keys and values"),
        ("classes:\n  c:\n    paterns: []\n", "line 3: unknown key 'paterns'; did you mean 'patterns'?"),
        ("classes:\n  c:\n    shares: {one: a}\n", "line 3: shares: Expected `int`, got `str`"),
        ("aliases:\n  x: [m]\n", "line 2: x: Expected `str`, got `array`"),
        ("a: &x {}\nb: *x\n", "line 2: aliases (*name) are not used here"),
        ("a: [\n", "line 2: "),
        ("a: !!python/object:os.system {}\n", "line 1: "),
        ("a: \x00\n", "line 1: this is not YAML"),
        ("[" * 20_000, "line 1: it is nested too deeply"),
        ("#" * (notation.LARGEST + 1), "line 1: the file has more than"),
    ],
)
def test_what_is_wrong_is_told_by_its_line(text: str, complaint: str) -> None:
    with pytest.raises(notation.FleetFileError) as caught:
        notation.read(text, no_reference)
    assert any(line.startswith(complaint) for line in str(caught.value).splitlines()), caught.value


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(notation.FleetFileError) as caught:
        notation.read(f"{GOOD}    weight: x\n    port: 1\n    kinds: http\n", no_reference)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["line 5", "line 6", "line 7"]


@pytest.mark.parametrize("text", ["", "servers:\n", "# nothing\n", "servers: {}\naliases:\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    read, _ = notation.read(text, no_reference)
    assert differences(Declared(), read) == []


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_no_text_whatever_is_more_than_a_mistake(text: str) -> None:
    result: Any = None
    try:
        result = notation.read(text, no_reference)
    except notation.FleetFileError as error:
        assert str(error)
    assert result is None or isinstance(result[0], Declared)
