"""Imports point one way: kernel ← audit ← orchestration ← gateway ← shell. Pure modules know no world and no clock."""

import ast
import sys

import pytest

from tests.house.modules import ROOT, Module, modules, within

KERNEL = frozenset(
    {
        "citadel",
        "citadel.addresses",
        "citadel.answer",
        "citadel.background",
        "citadel.body",
        "citadel.caller",
        "citadel.client_address",
        "citadel.command",
        "citadel.config",
        "citadel.context",
        "citadel.cookies",
        "citadel.cors",
        "citadel.database",
        "citadel.deadlines",
        "citadel.decoding",
        "citadel.description",
        "citadel.descriptors",
        "citadel.pages",
        "citadel.errors",
        "citadel.gathering",
        "citadel.hop",
        "citadel.json_limits",
        "citadel.logs",
        "citadel.names",
        "citadel.origin",
        "citadel.permissions",
        "citadel.redis",
        "citadel.redis_address",
        "citadel.rows",
        "citadel.sections",
        "citadel.sections.access",
        "citadel.sections.fleet",
        "citadel.sections.section",
        "citadel.sections.serving",
        "citadel.security_log",
    }
)
APPS = ("apps.audit", "apps.orchestration", "apps.gateway")
"""From the bottom to the top: each may import what is before it."""

PURE = frozenset(
    {
        "apps.gateway.inference.caching.replay",
        "apps.gateway.inference.streams.sse",
        "apps.orchestration.health.passive",
        "apps.orchestration.routing.plan",
        "citadel.cookies",
        "citadel.json_limits",
        "citadel.permissions",
    }
)
WORLD = frozenset(
    {
        "aiohttp",
        "asyncio",
        "concurrent",
        "datetime",
        "celery",
        "django",
        "hiredis",
        "http",
        "httpx",
        "io",
        "logging",
        "multiprocessing",
        "ninja",
        "os",
        "pathlib",
        "psycopg",
        "psycopg_pool",
        "random",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "ssl",
        "structlog",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib",
        "uvicorn",
        "uvloop",
        "yaml",
    }
)
VAGUE = frozenset({"utils", "util", "helpers", "helper", "services", "common", "manager", "managers", "misc"})
EDGES = {
    "citadel.guard": "the outermost edge of a request",
    "citadel.asgi": "the outermost edge of a worker's start",
    "apps.orchestration.follow": "a task that must go on while the worker lives: it hears of revoked keys",
    "apps.orchestration.health.watch": "a task that must go on while the worker lives: no server would come back",
    "apps.gateway.limits.worker": "a task that must go on while the worker lives: it holds the worker's places",
}
"""Where any exception may be caught, and why."""

OURS = modules("citadel", "apps")


def layer(name: str) -> str:
    """What a module of ours belongs to: an app, the kernel or the shell."""
    for app in APPS:
        if within(name, app):
            return app
    return "kernel" if name in KERNEL or name == "apps" else "shell"


def own_imports(module: Module) -> set[str]:
    """The modules of ours that it imports; a name taken out of one counts as that module."""
    known = {one.name for one in OURS}
    return {name for name in module.imports if name in known} - {"apps"} | {
        name.rpartition(".")[0] for name in module.imports if name.rpartition(".")[0] in known and name not in known
    }


def allowed(of: str) -> set[str]:
    if of == "shell":
        return {"kernel", *APPS, "shell"}
    below = APPS[: APPS.index(of) + 1] if of in APPS else ()
    return {"kernel", *below}


@pytest.mark.parametrize("module", OURS, ids=lambda module: module.name)
def test_a_module_imports_nothing_above_it(module: Module) -> None:
    may = allowed(layer(module.name))
    wrong = sorted(name for name in own_imports(module) if layer(name) not in may)
    assert not wrong, f"{module.name} ({layer(module.name)}) may import {', '.join(sorted(may))} alone, not {wrong}"


def test_the_layers_are_those_that_are_there() -> None:
    """A part that is renamed must not slip out of the rule."""
    names = {module.name for module in OURS}
    assert names >= KERNEL
    assert {f"apps.{path.name}" for path in (ROOT / "apps").iterdir() if (path / "__init__.py").exists()} == set(APPS)
    assert {layer(name) for name in names} == {"kernel", "shell", *APPS}


def test_the_embedded_mode_is_known_to_nobody() -> None:
    for module in OURS:
        if not within(module.name, "citadel.embedded"):
            assert not any(within(name, "citadel.embedded") for name in module.imports), module.name


def test_the_package_itself_imports_nothing() -> None:
    [package] = [module for module in OURS if module.name == "citadel"]
    assert not package.imports


def is_pure(module: Module) -> bool:
    return module.name in PURE or within(module.name, "apps.orchestration.dialects") or "Pure." in module.docstring


@pytest.mark.parametrize("module", [module for module in OURS if is_pure(module)], ids=lambda module: module.name)
def test_a_pure_module_imports_neither_the_world_nor_a_clock(module: Module) -> None:
    wrong = sorted(name for name in module.imports if name.partition(".")[0] in WORLD)
    assert not wrong, f"{module.name} is pure; {wrong} is not"


def test_the_pure_modules_are_there() -> None:
    assert {module.name for module in OURS} >= PURE


def test_the_world_is_spelled_right() -> None:
    """A name with a typing error would forbid nothing."""
    imported = {name.partition(".")[0] for module in modules("citadel", "apps", "bench") for name in module.imports}
    assert not {name for name in WORLD if name not in sys.stdlib_module_names and name not in imported}


@pytest.mark.parametrize("module", modules("citadel", "apps", "bench", "tests"), ids=lambda module: module.name)
def test_a_module_is_named_after_its_idea(module: Module) -> None:
    assert not VAGUE & set(module.name.split("."))


def catches_anything(handler: ast.ExceptHandler) -> bool:
    """A bare `except`, or one of the roots, unless it only lets go of something and raises on."""
    caught = ast.walk(handler.type) if handler.type else [ast.Name("Exception")]
    names = {node.id for node in caught if isinstance(node, ast.Name)}
    raises_on = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return "Exception" in names or ("BaseException" in names and not raises_on)


@pytest.mark.parametrize("module", modules("citadel", "apps", "bench"), ids=lambda module: module.name)
def test_only_outermost_edges_catch_whatever_comes(module: Module) -> None:
    handlers = [node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)]
    found = [handler.lineno for handler in handlers if catches_anything(handler)]
    assert len(found) == (module.name in EDGES), f"{module.path}: lines {found}"
