"""The house has floors: imports only go down, and each framework stays where it lives."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "auris"

# Of a module's dotted name the longest prefix counts.
FLOORS = {
    "auris.measures": -3,  # numbers only
    "auris.statistics": -2,
    "auris.results": -1,  # reads files only
    "auris.audio": 0,
    "auris.answers": 0,
    "auris.completions": 0,
    "auris.tasks": 0,
    "auris.task_table": 0,
    "auris.prompts": 0,
    "auris.tokenizer": 0,
    "auris.data": 1,
    "auris.scoring": 1,
    "auris.papers": 1,
    "auris.corpus": 1,
    "auris.model": 2,
    "auris.objectives": 3,
    "auris.parallel": 3,
    "auris.optim": 3,
    "auris.ranks": 3,
    "auris.work": 3,
    "auris.strategies": 4,
    "auris.faults": 0,
    "auris.snapshots": 3,
    "auris.module": 4,
    "auris.callbacks": 4,
    "auris.references": 4,
    "auris.persistence": 4,
    "auris.data.datamodule": 4,
    "auris.recipe": 5,
    "auris.checkpoint": 5,
    "auris.pretrained": 5,
    "auris.export": 5,
    "auris.doctor": 5,
    "auris.checkup": 5,
    "auris.instruct": 5,
    "auris.environment": 5,
    "auris.reproduce": 5,
    "auris.prepare": 5,
    "auris.train": 5,
    "auris.evaluate": 5,
    "auris.predictions": 5,
    "auris.judged": 5,
    "auris.kept": 5,
    "auris.report": 5,
    "auris.reporting": 5,
    "auris.benchmarks": 5,
    "auris.chat": 5,
    "auris.prefer": 5,
    "auris.align": 5,
    "auris.inspection": 5,
    "auris.shards": 5,
    "auris.scaling": 5,
    "auris.speed": 5,
    "auris.studies": 5,
    "auris.corpus.__main__": 5,
}
LOWEST = {"lightning": 4, "pytorch_lightning": 4, "hydra": 5, "omegaconf": 5}

# Imports that would go down and are still forbidden: what data must know of the model is `audio.Geometry`.
STRANGERS = [("auris.model", "auris.data"), ("auris.model", "auris.scoring"), ("auris.model", "auris.corpus")]


def prefixes(module: str) -> list[str]:
    """`a.b.c` -> a.b.c, a.b, a."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def floor(module: str) -> int:
    """The floor of one of our modules. LookupError for one that has none."""
    for prefix in prefixes(module):
        if prefix in FLOORS:
            return FLOORS[prefix]
    raise LookupError(f"{module} is on no floor: add it to FLOORS")


def imports(source: str, module: str, modules: set[str]) -> set[str]:
    """Full names of all that a source imports, wherever in it; a name taken from a package may be a module of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
            inner = {f"{base}.{alias.name}" for alias in node.names} & modules
            found |= inner or {base}
    return found


def faults(module: str, source: str, modules: set[str]) -> list[str]:
    """What a module imports and must not."""
    found = []
    for imported in sorted(imports(source, module, modules)):
        if imported.split(".")[0] == "auris":
            if imported == "auris":  # the package itself: its version
                continue
            beside = floor(imported) == floor(module) < 0  # below the floors a package has its own modules alone
            own = imported.startswith("auris.results.") and "auris.results" in prefixes(module)
            upward = floor(imported) > floor(module) or (beside and not own)
            strangers = any(a in prefixes(module) and b in prefixes(imported) for a, b in STRANGERS)
            if upward or strangers:
                found.append(f"{module} imports {imported}")
        else:
            lowest = LOWEST.get(imported.split(".")[0], min(FLOORS.values()))
            if floor(module) < lowest:
                found.append(f"{module} imports {imported}")
    return found


def sources() -> dict[str, str]:
    """Dotted name -> source of every module of the package but its root."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def test_every_module_has_a_floor_and_every_floor_a_module():
    modules = set(sources()) - {"auris"}
    assert all(floor(module) in FLOORS.values() for module in modules)
    assert [known for known in FLOORS if not any(known in prefixes(module) for module in modules)] == []


def test_imports_only_go_down():
    known = sources()
    ours = [module for module in known if module != "auris"]
    assert [fault for module in ours for fault in faults(module, known[module], set(known))] == []


def test_the_package_itself_imports_none_of_its_modules():
    known = sources()
    assert {name for name in imports(known["auris"], "auris", set(known)) if name.startswith("auris")} == set()


@pytest.mark.parametrize(
    "module, source",
    [
        ("auris.audio", "from auris.data.packing import IGNORE"),
        ("auris.data.packing", "from auris.data import datamodule"),
        ("auris.data.rows", "from .datamodule import group"),
        ("auris.data.samples", "def f():\n    import auris.model.llm"),
        ("auris.model.llm", "from auris.data.packing import IGNORE"),
        ("auris.model", "from auris import scoring"),
        ("auris.optim", "from auris import callbacks"),
        ("auris.results", "from auris.scoring import normalize"),
        ("auris.results", "from auris import results"),
        ("auris.measures", "from auris import results"),
        ("auris.module", "from hydra.utils import instantiate"),
        ("auris.data.rows", "from omegaconf import OmegaConf"),
        ("auris.parallel", "import lightning as L"),
        ("auris.corpus.build", "import hydra"),
    ],
)
def test_a_planted_import_is_caught(module, source):
    assert len(faults(module, source, set(sources()))) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("auris.scoring.metrics", "from auris.measures import value"),
        ("auris.results", "from auris import measures"),
        ("auris.data.datamodule", "import lightning as L\nfrom auris.data import rows"),
        ("auris.corpus.__main__", "import hydra\nfrom auris.corpus.build import build"),
        ("auris.train", "import auris\nfrom auris import recipe"),
    ],
)
def test_what_may_be_imported_is(module, source):
    assert faults(module, source, set(sources())) == []


def test_a_module_without_a_floor_is_noticed():
    with pytest.raises(LookupError, match="auris.utils is on no floor"):
        floor("auris.utils")
