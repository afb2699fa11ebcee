"""The page of all claims: counted, in the paper's order, and of several scales each at the largest."""

import json
import re
from pathlib import Path

from justimage.reproduction.claims_page import write_claims

WORDS = {True: "holds", False: "does not hold here", None: "inconclusive here"}


def store(folder: Path, name: str, *verdicts: bool | None) -> None:
    """Write a table's JSON with a claim for each verdict."""
    claims = [
        {"sentence": f"claim {i}", "holds": holds, "verdict": WORDS[holds], "evidence": f"{name} {folder.name}", "margin": None}
        for i, holds in enumerate(verdicts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"scale": folder.name, "claims": claims}))


def page(folder: Path) -> str:
    return (folder / "claims.md").read_text()


def test_the_claims_of_a_folder_are_counted_and_in_the_papers_order(tmp_path: Path) -> None:
    store(tmp_path / "mine", "table10", True, None)
    store(tmp_path / "mine", "table2", True, False)
    store(tmp_path / "mine", "fig4", True)
    write_claims(tmp_path / "mine")
    assert "\nHold: 3; do not hold: 1; inconclusive: 1; in all 5.\n" in page(tmp_path / "mine")
    links = re.findall(r"^\| \[.*?\]\((.*?)\)", page(tmp_path / "mine"), re.MULTILINE)
    assert links == ["fig4.md", "table2.md", "table2.md", "table10.md", "table10.md"]
    assert not (tmp_path / "claims.md").exists()


def test_of_several_scales_each_table_counts_at_the_largest(tmp_path: Path) -> None:
    store(tmp_path / "laptop", "table4", None, None)
    write_claims(tmp_path / "laptop")
    assert not (tmp_path / "claims.md").exists()  # one scale: its own page says it
    store(tmp_path / "laptop", "fig2", True)
    store(tmp_path / "overnight", "table4", True, False)
    for written in ("overnight", "laptop"):  # whichever was run last
        write_claims(tmp_path / written)
        assert "\nHold: 2; do not hold: 1; inconclusive: 0; in all 3.\n" in page(tmp_path)
        assert "| [fig2, laptop](laptop/fig2.md) | claim 0 | holds: fig2 laptop |" in page(tmp_path)
        assert "| [table4, overnight](overnight/table4.md) | claim 1 | does not hold here: table4 overnight |" in page(tmp_path)
        assert "laptop/table4.md" not in page(tmp_path)
    assert "\nHold: 1; do not hold: 0; inconclusive: 2; in all 3.\n" in page(tmp_path / "laptop")
