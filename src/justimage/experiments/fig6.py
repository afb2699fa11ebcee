"""Fig. 6: FID and IS against guidance, with and without the interval."""

from justimage.laboratory import Cell, Claim, Experiment, Table, smaller
from justimage.laboratory.scales import Scale
from justimage.laboratory.sheets import lines
from justimage.laboratory.trained import Trained
from justimage.recipe import changed

INTERVALS = {"without interval": (0.0, 1.0), "interval 0.1 to 1": (0.1, 1.0)}
SHOWN = {"best FID": "fid", "IS there": "inception_score", "guidance there": "guidance"}
PAPER = {("interval 0.1 to 1", "best FID"): 2.36, ("interval 0.1 to 1", "IS there"): 298.5}  # L/16, 600 epochs (Table 13)


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(
            row,
            column,
            (Trained(changed(s.recipe("L/16", 600), interval=interval), whole=True),),
            PAPER.get((row, column)),
            shows,
        )
        for row, interval in INTERVALS.items()
        for column, shows in SHOWN.items()
    ]


def curves(table: Table) -> dict[str, list[dict[str, float]]]:
    return {
        row: found[0]["curve"] for row in table.rows if (cell := table.cell(row, "best FID")) and (found := table.found(cell))
    }


def claims(table: Table) -> list[Claim]:
    both = curves(table)
    answers = {row: [p["inception_score"] or 0.0 for p in curve] for row, curve in both.items()}
    rising = all(b > a for a, b in zip(answers["without interval"], answers["without interval"][1:], strict=False))
    first = [min(curve, key=lambda p: p["fid"])["guidance"] for curve in both.values()]
    steep = [max(p["fid"] for p in curve if p["guidance"] >= at) for curve, at in zip(both.values(), first, strict=True)]
    return [
        smaller(
            "the best FID is better with the interval",
            table("interval 0.1 to 1", "best FID"),
            table("without interval", "best FID"),
        ),
        smaller("beyond the best guidance FID rises less with the interval", steep[1], steep[0]),
        Claim(
            "without the interval IS rises with guidance", rising, ", ".join(f"{a:.4g}" for a in answers["without interval"])
        ),
    ]


def picture(table: Table) -> bytes | None:
    both = curves(table)
    guidance = {row: [p["guidance"] for p in curve] for row, curve in both.items()}
    return lines(
        [
            ("guidance", label, [(row, guidance[row], [p[what] for p in curve]) for row, curve in both.items()])
            for what, label in {"fid": "FID", "inception_score": "IS"}.items()
        ]
    )


EXPERIMENT = Experiment(
    title="FID and IS against guidance, with and without interval",
    expects="FID has a minimum over guidance; with the interval it is lower and wider. IS rises with guidance.",
    cells=cells,
    claims=claims,
    picture=picture,
)
