"""The documents are true: their Python runs as it stands, and their links lead somewhere."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from justimage import solvers, training
from justimage.features import open_features
from justimage.run import budget

PROJECT = Path(__file__).parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), PROJECT / "benchmarks" / "RESULTS.md"])
SMALLER = {
    "README.md": {
        "range(2_000)": "range(3)",
        'justimage.preset("digits")': 'justimage.recipe.with_values(justimage.preset("digits"), **TINY)',
        "steps=50": "steps=2",
    }
}
"""What is replaced in a page to run it in seconds: how long something is trained, not what."""
TINY = dict(width=32, depth=2, heads=2, context_start=1, total_images=64, steps=2, preview_count=4)


def python_blocks(page: Path) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def code_lines(block: str) -> list[str]:
    """The lines of a block that are not blank and not imports."""
    return [line for line in block.splitlines() if line.strip() and not line.startswith(("import ", "from ", "#"))]


@pytest.mark.parametrize("name", ["README.md", "docs/extending.md", "docs/editing.md"])
def test_the_python_of_a_page_runs_as_it_stands(name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "docs/editing.md":
        shutil.copytree(run, tmp_path / "runs" / "digits")
    blocks, known = python_blocks(PROJECT / name), {"TINY": TINY, "__name__": "page"}
    smaller = SMALLER.get(name, {})
    assert all(any(long in block for block in blocks) for long in smaller)
    with mock.patch.dict(solvers.SOLVERS), mock.patch.dict(training.OPTIMIZERS):
        for number, block in enumerate(blocks):
            for long, short in smaller.items():
                block = block.replace(long, short)
            exec(compile(block, f"{name}, block {number}", "exec"), known)
    check: dict[str, Any] = {
        "README.md": check_readme, "docs/extending.md": check_extending, "docs/editing.md": check_editing,
    }  # fmt: skip
    check[name](known)


def check_readme(known: dict[str, Any]) -> None:
    assert known["samples"].shape == (16, 1, 32, 32) and known["samples"].dtype == torch.uint8
    assert known["images"].shape == (2, 1, 32, 32) and known["step"].images_seen == 64


def check_extending(known: dict[str, Any]) -> None:
    assert known["samples"].shape == (2, 1, 32, 32) and known["last"].images_seen == 128
    features, logits = open_features("pooled.pt2", torch.device("cpu")).extract(known["samples"])
    assert features.shape == (2, 16) and logits is None


def check_editing(known: dict[str, Any]) -> None:
    error = known["known"].forward(known["answer"]) - known["known"].forward(known["digit"])
    assert known["answer"].shape == (1, 1, 32, 32) and error.abs().max() < 1e-3


def test_an_extension_is_at_most_ten_lines() -> None:
    for block in python_blocks(PROJECT / "docs" / "extending.md"):
        assert len(code_lines(block)) <= 10, block


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", sorted((PROJECT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less time to train in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budget, "MIN_STEPS", 1)
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    known: dict[str, Any] = {"__name__": notebook.stem}
    for number, cell in enumerate(cells):
        text = "".join(cell["source"]).replace("BUDGET = 900", "BUDGET = 10")
        exec(compile(text, f"{notebook.name}, cell {number}", "exec"), known)
    assert known["step"].images_seen >= 32 and known["images"].dtype == torch.uint8
    assert list(tmp_path.glob("*.png"))
