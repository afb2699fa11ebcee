"""Table 5: larger images with patches in proportion, the same length of sequence."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, at_most
from justimage.reproduction.cost_job import CountCost
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

METRICS = {"patch_dimension": "patch dim", "parameters_m": "params M", "gflops": "GFLOPs", "fid": "FID"}
PAPER = {  # in this order; FID-50K
    "B/16": (768, 131, 25, 4.37),
    "B/32": (3072, 133, 26, 4.64),
    "B/64": (12288, 141, 30, 4.82),
}


COMPARED = "B/16", "B/64"
"""The networks that the claim about scores compares."""
PAPERS_B = dict(width=768, depth=12, heads=12, bottleneck=128, context_tokens=32, context_start=4)


def cells(s: Scale) -> list[Cell]:
    """The paper's table; and, elsewhere, what the network of its width would cost on the same images.

    Shorter trainings tell how fast a network learns, which larger patches slow down: overnight, on 240,000 images, B/64 has
    1.48 times the FID of B/16, while sizes that learn faster have the same score at both resolutions (Table 6). With several
    seeds, twice as many of the two that the claim compares, which then know their own noise.
    """
    recipes, found = {name: s.recipe(name, long=True) for name in PAPER}, []
    for name, row in PAPER.items():
        r, facts = recipes[name], dict(network=name, size=recipes[name].model.size[0])
        seeds = 2 * s.seeds if s.seeds > 1 and name in COMPARED else s.seeds
        for metric, paper in zip(METRICS, row, strict=True):
            jobs = with_seeds(r, seeds, scored=s.fine_scoring) if metric == "fid" else [CountCost(r)]
            found.append(Cell(facts | dict(width=None), jobs, paper, metric))
        if s.name != "paper":
            found.append(Cell(facts | dict(width=768), [CountCost(with_values(r, **PAPERS_B))], row[2], "gflops"))
    return found


def claims(table: Table) -> list[Claim]:
    first, last = (table.cell(network=name, metric="fid") for name in COMPARED)
    found = [at_most("the score stays as it is: less than 1.5 times the first", table, last, first, 1.5)]
    why = "in a small network the embedding of a patch is a large part, which the same count shows for the paper's width"
    for width in dict.fromkeys(cell.params["width"] for cell in table.cells):
        dear, cheap = (table.cell(network=name, metric="gflops", width=width) for name in ("B/64", "B/16"))
        sentence = "cost grows by less than half, patches sixteenfold" + (f": a network {width} wide" if width else "")
        found.append(at_most(sentence, table, dear, cheap, 1.5, "" if width else why))
    return found


EXPERIMENT = Experiment(
    title="resolutions with patches in proportion",
    expects="Patches of up to 12,288 numbers, at the same cost and nearly the same score.",
    cells=cells, claims=claims, figure=tiles,
    row="{network} at {size}", column="{metric}{width}",
    notes="Ours are parameters and GFLOPs of this scale's networks; in the last column, of the paper's B on the same images.",
    labels={"metric": METRICS, "width": {None: "", 768: ", 768 wide"}},
    second_look=True,
    minutes={"laptop": 1},
)  # fmt: skip
