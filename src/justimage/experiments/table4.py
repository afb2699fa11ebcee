"""Table 4: general improvements of Transformers, one after the other, without and with the guidance interval."""

from justimage.recipe import with_values
from justimage.reproduction import Cell, Claim, Experiment, Table, better
from justimage.reproduction.plots import tiles
from justimage.reproduction.scales import Scale
from justimage.reproduction.training_job import TrainAndScore

STEPS = {  # what each row has; footnote 5, then the table
    "no SwiGLU, no RMSNorm": dict(rope=False, qk_norm=False, context_tokens=0, mlp="gelu", norm="layer"),
    "baseline": dict(rope=False, qk_norm=False, context_tokens=0),
    "+ RoPE, qk-norm": dict(context_tokens=0),
    "+ in-context tokens": dict(),
}
PAPER = {"no SwiGLU, no RMSNorm": (7.89,), "baseline": (7.48, 6.32), "+ RoPE, qk-norm": (6.69, 5.44)}
PAPER |= {"+ in-context tokens": (5.49, 4.37, 3.39, 2.79)}
COLUMNS = ("B/16", (0.0, 1.0)), ("B/16", (0.1, 1.0)), ("L/16", (0.0, 1.0)), ("L/16", (0.1, 1.0))


def cells(s: Scale) -> list[Cell]:
    return [
        Cell(
            step,
            name + (", interval" if interval[0] else ""),
            (TrainAndScore(with_values(s.recipe(name), **parts, interval=interval)),),
            paper,
        )
        for step, parts in STEPS.items()
        for (name, interval), paper in zip(COLUMNS, PAPER[step], strict=False)
    ]


def claims(table: Table) -> list[Claim]:
    small = "a sequence of four patches leaves little to positions and to class tokens"
    last = "+ in-context tokens"
    return [
        better("SwiGLU and RMSNorm help (footnote 5)", table, ("baseline", "B/16"), ("no SwiGLU, no RMSNorm", "B/16"), small),
        better("RoPE and qk-norm help", table, ("+ RoPE, qk-norm", "B/16"), ("baseline", "B/16"), small),
        better("in-context class tokens help", table, (last, "B/16"), ("+ RoPE, qk-norm", "B/16"), small),
        better(
            "the guidance interval helps", table, (last, "B/16, interval"), (last, "B/16"),
            "with 12 steps the interval leaves out two of them",
        ),
        better("the larger network is better", table, (last, "L/16"), (last, "B/16"), "both have learnt ten digits"),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    title="general improvements of Transformers",
    expects="Each step is better than the one before, and the guidance interval is better than none.",
    cells=cells,
    claims=claims,
    figure=tiles,
    minutes=3,
)
