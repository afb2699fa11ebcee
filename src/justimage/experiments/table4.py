"""Table 4: general improvements of Transformers, one after the other, without and with the guidance interval."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import with_seeds

STEPS = {  # what each row has; footnote 5, then the table
    "no SwiGLU, no RMSNorm": dict(rope=False, qk_norm=False, context_tokens=0, mlp="gelu", norm="layer"),
    "baseline": dict(rope=False, qk_norm=False, context_tokens=0),
    "+ RoPE, qk-norm": dict(context_tokens=0),
    "+ in-context tokens": dict(),
}
WHOLE, PART = (0.0, 1.0), (0.1, 1.0)
COLUMNS = ("B/16", WHOLE), ("B/16", PART), ("L/16", WHOLE), ("L/16", PART)
PAPER = {
    "no SwiGLU, no RMSNorm": (7.89,),
    "baseline": (7.48, 6.32),
    "+ RoPE, qk-norm": (6.69, 5.44),
    "+ in-context tokens": (5.49, 4.37, 3.39, 2.79),
}


MANY = "baseline", "+ RoPE, qk-norm"
"""The steps whose difference three seeds do not tell for certain."""


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(
            dict(step=step, network=name, interval=interval),
            with_seeds(
                with_values(s.recipe(name), **values, interval=interval),
                s.many_seeds if step in MANY and interval == WHOLE else s.seeds,
            ),
            paper,
        )
        for step, values in STEPS.items()
        for (name, interval), paper in zip(COLUMNS, PAPER[step], strict=False)
    ]


def claims(table: Table) -> list[Claim]:
    first, base, rope, last = (table.cell(step=step, network="B/16", interval=WHOLE) for step in STEPS)
    with_interval = table.cell(step="+ in-context tokens", network="B/16", interval=PART)
    larger = table.cell(step="+ in-context tokens", network="L/16", interval=WHOLE)
    small = table.on_laptop("a sequence of four patches leaves little to positions and to class tokens")
    learnt = table.on_laptop("both have learnt ten digits")
    return [
        better("SwiGLU and RMSNorm help (footnote 5)", table, base, first, small),
        better("RoPE and qk-norm help", table, rope, base, small),
        better("in-context class tokens help", table, last, rope, small),
        better("the guidance interval helps", table, with_interval, last),
        better("the larger network is better", table, larger, last, learnt),
    ]


EXPERIMENT = Experiment(
    title="general improvements of Transformers",
    expects="Each step is better than the one before, and the guidance interval is better than none.",
    cells=cells, claims=claims, figure=tiles,
    row="{step}", column="{network}{interval}", labels={"interval": {WHOLE: "", PART: ", interval"}},
    second_look=True,
    minutes={"laptop": 1.5},
)  # fmt: skip
