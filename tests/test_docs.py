"""The documents are true: their Python runs as it stands, and their links lead somewhere."""

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from justimage import solvers, training
from justimage.features import open_features
from justimage.run import budget

PROJECT = Path(__file__).parents[1]
IS_SDIST = (PROJECT / "PKG-INFO").exists()
"""Whether this is an unpacked source distribution, which comes without the documents' pictures (pyproject.toml)."""
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


def test_every_page_is_in_the_navigation_and_can_be_reached_from_the_readme() -> None:
    navigation = set(re.findall(r"[\w/-]+\.md", (PROJECT / "mkdocs.yml").read_text()))
    pages = sorted((PROJECT / "docs").rglob("*.md"))
    assert {page.relative_to(PROJECT / "docs").as_posix() for page in pages} <= navigation
    reached, ahead = set(), [PROJECT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            links = (link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()))
            ahead += [(page.parent / link).resolve() for link in links if link.endswith(".md") and "://" not in link]
    assert not set(pages) - reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists() or (link.endswith(".png") and IS_SDIST), link
        assert not anchor or anchor in anchors(target), link


NOTEBOOKS = sorted((PROJECT / "examples").glob("*.ipynb"))
SHORT = {"BUDGET": 10, "STEPS": 20, "EACH": 1}
"""What is set to less in a notebook's first lines to run it in seconds: how long it trains, how many samples it reads."""


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less time to train in. A figure at a cell's end is not shown, as nobody looks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(notebook.parent))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(budget, "MIN_STEPS", 1)
    monkeypatch.setattr(budget, "measure_speed", lambda *_, **__: 64.0)  # images/s: the same length on any machine
    known: dict[str, Any] = {"__name__": notebook.stem}
    shortened = 0
    check: dict[str, Any] = {
        "your-images": check_your_images, "quickstart": check_quickstart, "table2": check_table2,
        "new_solver": check_new_solver, "conditions": check_conditions,
    }  # fmt: skip
    with mock.patch.dict(solvers.SOLVERS):
        for number, (_, text) in enumerate(code_cells(notebook)):
            for name, value in SHORT.items():
                text, found = re.subn(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
                shortened += found
            exec(compile(text, f"{notebook.name}, cell {number}", "exec"), known)
        assert shortened
        check[notebook.stem](known)


def code_cells(notebook: Path) -> list[tuple[str, str]]:
    """The cells of code, each with the text before it. As they are kept: without outputs, and each explained before."""
    cells = json.loads(notebook.read_text())["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * (len(cells) // 2)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    texts = ["".join(cell["source"]) for cell in cells]
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_needs_and_is_kept_without_outputs(notebook: Path) -> None:
    (title, _), *_ = code_cells(notebook)
    assert title.startswith("# ") and "pip install 'justimage[" in title
    page = (PROJECT / "docs" / "notebooks.md").read_text()
    assert f"(../examples/{notebook.name})" in page


def check_your_images(known: dict[str, Any]) -> None:
    assert known["step"].images_seen >= 32 and known["images"].dtype == torch.uint8
    assert list(Path().glob("*.png"))


def check_quickstart(known: dict[str, Any]) -> None:
    """Guidance of 1 is none, and what the network predicts at the end is the image."""
    assert known["images"].shape == (40, 1, 32, 32) and len(known["losses"]) == known["step"].images_seen / 32
    unguided, guided = known["guided"][1], known["guided"][2]
    assert torch.equal(known["images"][:10], guided) and not torch.equal(unguided, guided)
    assert torch.equal(known["points"][-1].x, known["points"][-1].z) and 0 <= known["accuracy"] <= 1


def check_table2(known: dict[str, Any]) -> None:
    """All eighteen combinations, of the same first weights and the same batches: no two of them draw the same."""
    assert len(known["distance"]) == 18 and min(known["distance"].values()) > 0
    for name, side in ("large", 32), ("small", 8):
        drawn = [images for (patches, *_), images in known["drawn"].items() if patches == name]
        assert len(drawn) == 9 and all(images.shape == (10, 1, side, side) for images in drawn)
        assert not any(torch.equal(a, b) for a, b in combinations(drawn, 2))


def check_new_solver(known: dict[str, Any]) -> None:
    """The order of the solvers is that of the books, and more passes are nearer to the truth."""
    orders = {"euler": 1, "heun": 2, "adams": 2, "dpm2": 2, "exponential_midpoint": 2}
    assert known["orders"] == pytest.approx(orders, abs=0.2)
    for curve in known["curves"].values():
        assert curve[-1][1] < curve[0][1]
    assert known["few"].passes == known["curves"]["exponential_midpoint, cosine"][2][0]


def check_conditions(known: dict[str, Any]) -> None:
    """What is told is told: another slant is another image, and a guidance of 0 knows least of the small image."""
    assert known["images"].shape == (50, 1, 32, 32) and -1 <= known["correlation"] <= 1
    assert not torch.equal(known["images"][:10], known["images"][-10:])
    assert max(known["agreement"], key=known["agreement"].get) == 0.0
    assert len({answer.numpy().tobytes() for answer in known["answers"]}) == 3
