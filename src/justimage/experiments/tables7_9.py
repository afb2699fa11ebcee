"""Tables 7 to 9: parameters, multiply-adds and the whole configuration, from the presets; nothing is trained."""

from typing import Any

from justimage import figures
from justimage.reproduction import Cell, Claim, Experiment, Table
from justimage.reproduction.cost_job import CountCost
from justimage.reproduction.scales import PAPER as PAPER_SCALE, Scale
from justimage.reproduction.tables import format_number

NETWORKS = "B/16", "L/16", "H/16", "G/16", "B/32", "L/32", "H/32", "G/32", "B/64"
COSTS = {  # in millions, and 10^9 multiply-adds (Tables 5, 7, 8)
    "parameters_m": (131, 459, 953, 2000, 133, 462, 956, 2000, 141),
    "gflops": (25, 88, 182, 383, 26, 89, 183, 384, 30),
}
BY_SIZE = {  # Table 9, of B, L, H, G
    "depth": (12, 24, 32, 40), "width": (768, 1024, 1280, 1664), "heads": (12, 16, 16, 16),
    "bottleneck": (128, 128, 256, 256), "dropout": (0, 0, 0.2, 0.2), "context_start": (4, 8, 10, 10),
}  # fmt: skip
ALIKE = {  # Table 9, of all
    "context_tokens": 32, "epochs": 600, "warmup_epochs": 5, "batch": 1024, "learning_rate": 2e-4,
    "beta_1": 0.9, "beta_2": 0.95,
    "ema_1": 0.9996, "ema_2": 0.9998, "ema_3": 0.9999, "mu": -0.8, "sigma": 0.8, "t_clip": 0.05, "label_drop": 0.1, "steps": 50,
    "interval_from": 0.1, "interval_to": 1.0,
}  # fmt: skip


def paper(name: str) -> dict[str, float]:
    """The paper's numbers for a network."""
    size, patch, place = "BLHG".index(name[0]), int(name[2:]), NETWORKS.index(name)
    costs = {metric: row[place] for metric, row in COSTS.items()}
    shape = {"image_size": 16 * patch, "patch_size": patch, "noise_scale": 16 * patch / 256}
    return costs | {metric: row[size] for metric, row in BY_SIZE.items()} | shape | ALIKE


def cells(s: Scale) -> list[Cell]:
    """The same at every scale."""
    jobs = {name: [CountCost(PAPER_SCALE.recipe(name, 600))] for name in NETWORKS}
    return [Cell(dict(network=name), jobs[name], value, metric) for name in NETWORKS for metric, value in paper(name).items()]


def claims(table: Table) -> list[Claim]:
    title = lambda cell: f"{table.row(cell)} of {table.column(cell)}"

    def error(cell: Cell) -> float:
        return abs(table.number(cell) / cell.paper - 1) if cell.paper else 0.0

    most = max((cell for metric in COSTS for cell in table.select(metric=metric)), key=error)
    exact = [cell for cell in table.cells if cell.metric not in COSTS]
    different = [title(cell) for cell in exact if table.number(cell) != cell.paper]
    found, why = (error(most) < 0.02, f"farthest: {title(most)}, {error(most):.1%}"), "see docs/method.md for B/64"
    return [
        Claim("parameters and GFLOPs are the paper's within 2 %", *found, why),
        Claim("the configuration is Table 9's", not different, ", ".join(different) or f"{len(exact)} numbers equal"),
    ]


def figure(table: Table) -> bytes | None:
    """Sizes as bars, with their costs."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        sizes = [table(network=name, metric="parameters_m") for name in NETWORKS]
        costs = (format_number(table(network=name, metric="gflops")) for name in NETWORKS)
        words = [f"{format_number(m)} M, {gflops} GFLOPs" for m, gflops in zip(sizes, costs, strict=True)]
        axes.bar_label(axes.barh(NETWORKS, sizes, color="#1f4e8c"), words, padding=4)
        axes.invert_yaxis()
        axes.set(xlabel="parameters (millions)", xlim=(0, 1.3 * max(sizes)))

    return figures.plot_png(plot, (7, 3.4))


EXPERIMENT = Experiment(
    title="parameters, GFLOPs and configurations",
    expects="Counts from the networks as they are built, and every number of Table 9, beside the paper's.",
    cells=cells, claims=claims, figure=figure,
    row="{metric}", column="{network}", labels={"metric": {metric: metric.replace("_", " ") for metric in paper("B/16")}},
    notes="GFLOPs are multiply-adds of one forward pass, as in the paper. Of H and G Table 9's epochs are those planned.",
    minutes={"laptop": 0.2},
)  # fmt: skip
