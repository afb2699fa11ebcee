"""Beyond the paper: the lower bound of 1 - t in sampling, against the score."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, all_of, with_bounds
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

CLIPS = 0.05, 0.04, 0.0
AS_THE_AUTHORS = dict(solver="heun", steps=50, times="linear")
"""A solver in x divides by nothing, and has no use for a clip."""


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(
            dict(network=name, t_clip=clip),
            with_seeds(with_values(s.recipe(name, 600), **AS_THE_AUTHORS), s.seeds, sampling_t_clip=clip),
        )
        for name in (("B/16", "H/16") if s.name == "paper" else ("B/16",))
        for clip in CLIPS
    ]


def claims(table: Table) -> list[Claim]:
    found = []
    for name in dict.fromkeys(cell.params["network"] for cell in table.cells):
        cells = table.select(network=name)
        none_to_authors = table.ratio(cells[-1], cells[0])
        evidence = ", ".join(f"{table.column(cell)}: {table.number(cell):.3g}" for cell in cells)
        unchanged = all_of([none_to_authors.below(1.05), none_to_authors.above(1 / 1.05)])
        found.append(
            Claim(
                f"{name}: without the clip FID differs from the authors', by 5 % or more",
                None if unchanged is None else not unchanged, f"{evidence}; {with_bounds(none_to_authors)} times",
            )
        )  # fmt: skip
    return found


EXPERIMENT = Experiment(
    title="the clip of 1 - t in sampling",
    expects="With 50 steps the authors' 0.05 leaves some grain at the end of sampling, and FID changes with it.",
    cells=cells, claims=claims, figure=tiles,
    row="{network}", column="clip {t_clip}", labels={"t_clip": {0.0: "none"}},
    minutes={"laptop": 1},
)  # fmt: skip
