"""Table 4: general improvements of Transformers, one after the other, without and with the guidance interval."""

from justimage.laboratory import Cell, Claim, Experiment, Table, smaller
from justimage.laboratory.scales import Scale
from justimage.laboratory.sheets import tiles
from justimage.laboratory.trained import Trained
from justimage.recipe import changed

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
            (Trained(changed(s.recipe(name), **parts, interval=interval)),),
            paper,
        )
        for step, parts in STEPS.items()
        for (name, interval), paper in zip(COLUMNS, PAPER[step], strict=False)
    ]


def claims(table: Table) -> list[Claim]:
    def better(sentence: str, after: str, before: str) -> Claim:
        return smaller(sentence, table(after, "B/16"), table(before, "B/16"))

    last = "+ in-context tokens"
    return [
        better("SwiGLU and RMSNorm help a little (footnote 5)", "baseline", "no SwiGLU, no RMSNorm"),
        better("RoPE and qk-norm help", "+ RoPE, qk-norm", "baseline"),
        better("in-context class tokens help", last, "+ RoPE, qk-norm"),
        smaller("the guidance interval helps", table(last, "B/16, interval"), table(last, "B/16")),
        smaller("the larger network is better", table(last, "L/16"), table(last, "B/16")),
    ]


EXPERIMENT = Experiment(
    title="general improvements of Transformers",
    expects="Each step is better than the one before, and the guidance interval is better than none.",
    cells=cells,
    claims=claims,
    picture=tiles,
)
