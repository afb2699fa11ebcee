"""Figs. 8 to 11: uncurated images by class, at the guidance of the best score."""

from justimage import figures
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.plots import grid
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import SHOWN_OF_CLASS, TrainAndScore, load_samples

CLASSES = (  # of ImageNet, in the order of the figures
    12, 14, 42, 81, 107, 108, 110, 117, 130, 279, 288, 309, 349, 397, 425, 448, 453, 458, 495, 500,
    658, 661, 718, 724, 725, 757, 779, 780, 829, 853, 873, 900, 911, 913, 927, 930, 946, 947, 975, 989,
)  # fmt: skip


def cells(s: Scale) -> list[Cell]:
    jobs = [TrainAndScore(s.recipe("G/16", 600), classes=CLASSES if s.name == "paper" else tuple(range(10)))]
    return [Cell(dict(network="G/16"), jobs, 1.82), Cell(dict(network="G/16"), jobs, 2.2, "guidance")]


def claims(table: Table) -> list[Claim]:
    (result,) = table.results_of(table.cell(metric="fid"))
    accuracy = result.get("class_accuracy")
    if accuracy is None:
        return []
    evidence = f"{accuracy:.1%}, by a classifier of the real images"
    return [Claim("images show the class that they were asked for (nine in ten)", accuracy > 0.9, evidence)]


def figure(table: Table) -> bytes | None:
    """A row for each class."""
    cell = table.cell(metric="fid")
    stored = load_samples(table.lab, cell.jobs[0])
    if stored is None:
        return None
    images, classes = stored
    names = table.results_of(cell)[0]["class_names"] or classes
    rows = {k: images[[i for i, c in enumerate(classes) if c == k]] for k in dict.fromkeys(classes)}
    return grid({f"class {k:03d}: {names[k]}": [(figures.image_grid(row, SHOWN_OF_CLASS), "")] for k, row in rows.items()})


EXPERIMENT = Experiment(
    title="uncurated images by class (Figs. 8 to 11)",
    expects="Every sample is shown, a class a row, at the guidance of the best FID rather than a higher one.",
    cells=cells, claims=claims, figure=figure,
    row="{network}", column="{metric}", labels={"metric": {"fid": "FID"}},
    minutes={"laptop": 1},
)  # fmt: skip
