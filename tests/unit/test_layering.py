"""Who may import whom: only what is below. Imports for type checking and inside of functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("worker", "engines", "plugins")

# From the bottom to the top. A module or package of `worker` stands in exactly one layer, and imports from lower ones
# alone. "concrete" stands for all of `engines` and `plugins` but their bases.
LAYERS: Sequence[frozenset[str]] = [
    frozenset(names.split())
    for names in (
        "worker.transport",
        "worker.claims worker.environment worker.errors worker.garbage worker.linetimes worker.lognames worker.model"
        " worker.ports worker.quantities worker.redaction worker.viewer",
        "worker.logfile worker.schema worker.spellings worker.tasktree",
        "worker.cgroups worker.folders worker.launcher worker.proctree",
        "worker.freezer worker.orphans worker.pidns",
        "worker.members",
        "worker.http worker.outcome worker.process worker.serving worker.spool worker.tasklog worker.trash",
        "worker.disk worker.watchdog",
        "worker.limits worker.logconfig",
        "worker.documents worker.payload worker.queue worker.references worker.registry",
        "worker.webhooks",
        "worker.cancelpoll worker.reading worker.run worker.services worker.taskfile",
        "worker.embedded",
        "engines.base",
        "plugins.base",
        "concrete worker.pluginhost",
        "worker.config",
        "worker.config_schema worker.recovery worker.workshop",
        "worker.doctor worker.taskrun",
        "worker.supervisor",
        "worker.cli worker.testing",
        "worker.__main__ worker.demo",
    )
]
REGISTRIES = frozenset({"engines.registry", "plugins.registry"})


def unit_of(module: str) -> str:
    """What stands in the table: `worker.queue.client` belongs to `worker.queue`."""
    return ".".join(module.split(".")[:2])


def is_concrete(unit: str) -> bool:
    return not unit.startswith("worker.") and unit not in {"engines.base", "plugins.base"}


def layer_of(unit: str) -> int | None:
    name = "concrete" if is_concrete(unit) else unit
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


def imported(source: str) -> Iterator[str]:
    """The units of ours that `source` imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [f"{module}.{alias.name}" for alias in node.names]
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno}: a relative import; name the package")
            case _:
                continue
        yield from (unit_of(module) for module in modules if module.partition(".")[0] in PACKAGES)


def breaches(sources: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with modules, given by name with their source."""
    for module, source in sources.items():
        unit = unit_of(module)
        own = layer_of(unit)
        if own is None:
            yield f"{module} stands in no layer: give {unit} a place in LAYERS, as low as its imports allow"
            continue
        for other in sorted({*imported(source)} - {unit}):
            below = layer_of(other)
            if below is None:
                yield f"{module} imports {other}, which stands in no layer"
            elif unit.startswith("worker.") and is_concrete(other) and other not in REGISTRIES:
                yield f"{module} names {other}: the core knows engines and plugins by their registries alone"
            elif unit.startswith("engines.") and other.startswith("plugins."):
                yield f"{module} imports {other}: an engine knows nothing of plugins"
            elif below >= own:
                yield f"{module} imports {other}, which is not below it"


def our_sources() -> dict[str, str]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / package / "__init__.py"
    }


def test_every_module_imports_only_what_is_below_it() -> None:
    assert list(breaches(our_sources())) == []


def test_the_table_names_nothing_twice_and_nothing_that_is_not_there() -> None:
    named = sorted(name for names in LAYERS for name in names if name != "concrete")
    there = {unit_of(module) for module in our_sources()}
    assert len(named) == len(set(named))
    assert set(named) <= there


def test_a_breach_is_told_wherever_the_import_stands() -> None:
    upwards = "def late() -> None:\n    import worker.supervisor\n"
    concrete = "if TYPE_CHECKING:\n    from engines.native import Native\n"
    sideways = "from plugins import env\n"
    found = list(
        breaches(
            {
                "worker.queue.client": upwards,
                "worker.cli.run": concrete,
                "plugins.success": sideways,
                "engines.native.engine": "from plugins.base import Plugin\n",
                "worker.novelty": "",
                "worker.taskrun": "from worker.workshop import Workshop\n",
            }
        )
    )
    assert found == [
        "worker.queue.client imports worker.supervisor, which is not below it",
        "worker.cli.run names engines.native: the core knows engines and plugins by their registries alone",
        "plugins.success imports plugins.env, which is not below it",
        "engines.native.engine imports plugins.base: an engine knows nothing of plugins",
        "worker.novelty stands in no layer: give worker.novelty a place in LAYERS, as low as its imports allow",
    ]
