"""The paper's tables and figures, one file each; what they share is in laboratory/."""

import difflib
from importlib import import_module

from justimage.laboratory import Experiment

NAMES = (
    "fig2", "table2", "table3", "fig4", "table4", "table5", "table6", "fig6", "fig7", "tables7-9", "table10", "table11",
    "table12", "table13", "fig8", "clip", "length",
)  # fmt: skip
"""In the paper's order, then ours."""


def experiment(name: str) -> Experiment:
    """The experiment of that name; ValueError with the nearest where there is none."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise ValueError(
            f"no experiment is called {name!r}; " + (f"perhaps {near[0]}" if near else f"there are {', '.join(NAMES)}")
        )
    return import_module(f"justimage.experiments.{name.replace('-', '_')}").EXPERIMENT
