"""The paper's tables and figures, one file each; what they share is in reproduction/."""

import difflib
import sys
from importlib import import_module
from pathlib import Path

from justimage.reproduction import Experiment

NAMES = (
    "fig2", "table2", "table3", "fig4", "table4", "table5", "table6", "fig6", "fig7", "tables7-9", "table10", "table11",
    "table12", "table13", "fig8", "sampling-clip", "ema-length",
)  # fmt: skip
"""In the paper's order, then ours."""
ALIASES = {f"table{n}": "tables7-9" for n in (7, 8, 9)} | {f"fig{n}": "fig8" for n in (9, 10, 11)}


def experiment(name: str) -> Experiment:
    """The experiment of that name, or the one in a .py file; ValueError with the nearest name where there is none."""
    if name.endswith(".py"):
        return load_file(Path(name).expanduser())
    name = ALIASES.get(name, name)
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"perhaps {near[0]}" if near else f"there are {', '.join(NAMES)}, or a file: mine.py"
        raise ValueError(f"no experiment is called {name!r}; {hint}")
    return import_module(f"justimage.experiments.{name.replace('-', '_')}").EXPERIMENT


def load_file(path: Path) -> Experiment:
    """The EXPERIMENT that a file defines, as those here do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the .py file of an experiment (docs/reproduce.md)")
    if path.stem in NAMES or path.stem in sys.modules or not path.stem.isidentifier():
        raise ValueError(f"{path} cannot be imported: its name is taken, or is no identifier; rename it: my_{path.stem}.py")
    sys.path.insert(0, str(path.resolve().parent))  # where the processes that run its jobs find it, too
    found = getattr(import_module(path.stem), "EXPERIMENT", None)
    if not isinstance(found, Experiment):
        raise ValueError(f"{path} defines no EXPERIMENT; it must be a justimage.reproduction.Experiment")
    return found
