"""The house: imports point one way, and heavy or fragile packages are not imported at the top."""

import ast
import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1] / "src" / "justimage"
MAY_IMPORT: dict[str, set[str]] = {
    # the heart, and what it stands on
    "checks": set(),
    "conditions": set(),
    "normalization": {"checks"},
    "diffusion": {"checks", "conditions"},
    "dropout": set(),
    "architectures": {"checks"},
    "layers": {"architectures", "dropout"},
    "text": {"architectures", "conditions", "layers"},
    "transformer": {"architectures", "conditions", "layers", "text"},
    "mlp": set(),
    "randomness": set(),
    "augmentation": {"randomness"},
    "measurements": set(),
    "tasks": {"measurements", "randomness"},
    "editing": {"conditions", "diffusion", "measurements", "randomness", "sampling", "solvers"},
    "tiles": {"conditions", "diffusion", "sampling"},
    "sample_arguments": {"conditions"},
    "solvers": set(),
    "sampling": {"checks", "conditions", "diffusion", "normalization", "randomness", "sample_arguments", "solvers"},
    "inference": {"architectures", "conditions", "diffusion", "layers", "sampling", "transformer"},
    # what a training stands on
    "disk": set(),
    "strict_json": set(),
    "stopping": set(),
    "progress": set(),
    "operators": set(),
    "pool": {"progress"},
    "log": {"disk"},
    "hub": {"disk"},
    "ema": set(),
    "distributed": set(),
    "parallelize": {"distributed", "layers", "transformer"},
    "data": {
        "checks", "conditions", "disk", "normalization", "operators", "pool", "progress", "randomness", "stopping",
        "strict_json",
    },
    "recipe": {
        "architectures", "checks", "cost", "data", "diffusion", "distributed", "ema", "normalization", "sampling",
        "strict_json", "tasks", "transformer",
    },
    "cost": {"architectures", "transformer"},
    "plan": {"architectures", "cost", "distributed", "recipe", "transformer"},
    "tuning": {"architectures", "cost", "distributed", "dropout", "layers", "recipe", "strict_json", "transformer"},
    "checkpoint": {
        "architectures", "disk", "distributed", "ema", "hub", "inference", "parallelize", "recipe", "sampling", "strict_json",
        "transformer",
    },
    "training": {
        "augmentation", "conditions", "data", "diffusion", "distributed", "dropout", "ema", "parallelize", "randomness",
        "recipe", "sampling", "tasks", "transformer",
    },
    "figures": {"normalization"},
    "preview": {"conditions", "data", "figures", "normalization", "randomness", "recipe", "sampling", "tasks", "training"},
    # generating and scoring
    "convert": {
        "architectures", "checkpoint", "conditions", "diffusion", "disk", "ema", "layers", "recipe", "sample_arguments",
        "sampling", "solvers", "transformer",
    },
    "convert/carried": {
        "architectures", "conditions", "diffusion", "normalization", "randomness", "sample_arguments", "sampling", "solvers",
        "transformer",
    },
    "chunks": {"disk", "distributed", "stopping"},
    "given": {"conditions", "data", "recipe", "tasks"},
    "generate": {
        "checkpoint", "chunks", "conditions", "disk", "distributed", "figures", "given", "inference", "progress",
        "randomness", "sample_arguments", "sampling", "stopping",
    },
    "features": {"data", "disk", "normalization", "operators", "progress", "randomness", "stopping", "strict_json"},
    "evaluation": {
        "chunks", "conditions", "data", "disk", "distributed", "ema", "features", "figures", "generate", "given",
        "normalization", "progress", "randomness", "recipe", "sampling", "stopping", "tasks", "training",
    },
    # the machine
    "machine": {"disk"},
    # the paper
    "reproduction": {
        "architectures", "checkpoint", "chunks", "cost", "data", "diffusion", "disk", "distributed", "evaluation",
        "features", "figures", "generate", "log", "mlp", "normalization", "plan", "pool", "progress", "randomness", "recipe",
        "run", "sampling", "stopping", "training", "transformer",
    },
    "experiments": {"figures", "recipe", "reproduction"},
}  # fmt: skip
"""A room and the rooms it may import; others (run, demo, cli, web) stand above and may import any of these."""
DATA = {
    "source": {"images"},
    "images": set(),
    "store": {"arrays", "images", "source"},
    "tables": set(),
    "matching": {"files", "images", "tables"},
    "encoded": {"tables"},
    "beside": {"encoded", "files", "images", "look", "matching", "source", "store", "tables"},
    "hf_table": set(),
    "tars": {"images"},
    "arrays": {"source"},
    "files": {"images", "source", "tars", "hf_table"},
    "stream": {"source", "arrays", "beside"},
    "built_in": {"arrays"},
    "look": {"arrays", "built_in", "files", "images", "store"},
    "prepare": {"arrays", "built_in", "files", "images", "source", "store"},
}
"""The same within data, whose front door (`__init__`) may import any of these but prepare."""
CORE = {"torch", "numpy", "PIL", "safetensors", "tyro", "rich", "justimage"}
CARRIED = HOUSE / "convert" / "carried"
"""Code for folders that run elsewhere, with diffusers; the package never imports it."""


def top_imports(file: Path) -> list[tuple[str, list[str]]]:
    """Modules imported when the file is, with the names taken from each; what stands inside functions is left out."""
    found = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, [alias.name for alias in node.names]))
    return found


def rooms(file: Path, house: str = "justimage") -> set[str]:
    """The rooms of this house, or of a folder in it, that a file imports at its top."""
    found = set()
    for module, names in top_imports(file):
        if module == house:
            found |= set(names)
        elif module.startswith(f"{house}."):
            found.add(module.removeprefix(f"{house}.").split(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    files = [HOUSE / f"{room}.py"] if (HOUSE / f"{room}.py").exists() else sorted((HOUSE / room).glob("*.py"))
    assert files
    for file in files:
        assert rooms(file) - {room} <= MAY_IMPORT[room], file


@pytest.mark.parametrize("room", DATA)
def test_imports_point_one_way_within_data(room: str) -> None:
    assert rooms(HOUSE / "data" / f"{room}.py", "justimage.data") <= DATA[room]


def test_tables_of_imports_name_every_room_of_data() -> None:
    assert {file.stem for file in (HOUSE / "data").glob("*.py")} == DATA.keys() | {"__init__"}


@pytest.mark.parametrize("file", sorted(HOUSE.rglob("*.py")), ids=lambda f: str(f.relative_to(HOUSE)))
def test_only_the_core_is_imported_at_the_top(file: Path) -> None:
    import sys

    roots = {module.split(".")[0] for module, _ in top_imports(file)}
    assert roots - set(sys.stdlib_module_names) <= (CORE | {"diffusers"} if file.parent == CARRIED else CORE)
    assert "tests" not in roots and "benchmarks" not in roots


def test_pickles_are_loaded_in_one_place_only() -> None:
    callers = [f.name for f in HOUSE.rglob("*.py") if "torch.load(" in f.read_text()]
    assert callers == ["official.py"]


def test_a_disk_is_changed_in_one_place_only() -> None:
    changes = re.compile(r"(?<!disk)\.(rename|unlink|mkdir|rmdir|write_bytes|write_text|touch)\(|rmtree|os\.(replace|remove)")
    callers = {f.name for f in HOUSE.rglob("*.py") if f.parent != CARRIED and changes.search(f.read_text())}
    assert callers == {"disk.py"}


def test_what_is_carried_is_imported_by_nobody() -> None:
    assert [f.name for f in HOUSE.rglob("*.py") if re.search(r"import.*\bcarried\b|from .*\bcarried\b", f.read_text())] == []


def test_only_distributed_speaks_to_other_processes() -> None:
    callers = {f.name for f in HOUSE.rglob("*.py") if re.search(r"torch\.distributed|dist\.", f.read_text())}
    assert callers == {"distributed.py", "parallelize.py"}


TWICE = {
    "main": "each command's",
    "cells": "each experiment's",
    "claims": "each experiment's",
    "figure": "each experiment's",
    "layout": "each tab's",
    "train": "the loop of steps, and the same in a run's directory",
    "parse": "a value from JSON, and options from the command line",
}
"""Names that two rooms may both define, and why."""


def test_a_name_is_defined_in_one_room() -> None:
    where: dict[str, set[str]] = {}
    for file in HOUSE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                where.setdefault(node.name, set()).add(str(file.relative_to(HOUSE)))
    assert {name: files for name, files in where.items() if len(files) > 1 and name not in TWICE and name[0] != "_"} == {}


def test_docstrings_name_what_there_is() -> None:
    """None begins with "What": a noun or an imperative says it sooner."""
    found = [str(f.relative_to(HOUSE)) for f in HOUSE.rglob("*.py") if re.search(r'"""What (?!a )', f.read_text())]
    assert found == []
