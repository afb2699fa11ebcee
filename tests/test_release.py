"""What is released: the wheel has all that is needed and no more, every extra is tried, and the citation is this version's."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import justimage
from tests.installed import CHECKS

PROJECT = Path(__file__).parents[1]
SOURCE = PROJECT / "src" / "justimage"


def test_every_extra_is_tried_before_a_release() -> None:
    """In an empty environment, by .ci/release; the extra `test` is by the tests."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert CHECKS.keys() == extras.keys() - {"test"} | {"core"}
    assert f"extras=({' '.join(CHECKS)})" in (PROJECT / ".ci" / "release").read_text()


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["version"] == justimage.__version__
    [paper] = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "He"]
    readme = (PROJECT / "README.md").read_text()
    assert paper["title"] in readme and paper["url"] in readme and paper["url"].endswith(paper["identifiers"][0]["value"][6:])


@pytest.mark.full
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Every file that stands in its folder, and of others the metadata."""
    words = "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(PROJECT)
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("no package index to fetch the build's backend from")
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    metadata = {f"justimage-{justimage.__version__}.dist-info/{n}" for n in
                ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}  # fmt: skip
    assert names == {path.relative_to(SOURCE.parent).as_posix() for path in files} | metadata
    assert "justimage/py.typed" in names
