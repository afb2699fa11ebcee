"""The best guidance and average for a model (App. A, "EMA and CFG"): the paper's grid, or a cheaper way to the same place.

All settings are compared on the same noise and the same classes, so their differences are far more certain than their
scores. The cheap way: every average at a few guidances with a quarter of the images; from the best of these, steps down the
grid with all of them; then the other averages there, and down the grid from there where they are not clearly worse.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from justimage import disk
from justimage.drawing import Drawing
from justimage.evaluation import scores
from justimage.evaluation.report import Examiner
from justimage.evaluation.scores import Score

LOW, HIGH, STEP = 1.0, 4.0, 0.1
"""The paper's candidates for the guidance."""
COARSE, SMALL = 5, 4
"""Steps of the grid between the first guidances looked at, and the part of the images (1 / SMALL) they are looked at with."""
WORSE = 3.0
"""Deviations of the difference from which on an average is left."""


class Setting(NamedTuple):
    """What is searched over. `at`: the guidance as a number of steps of the grid."""

    ema: float
    interval: tuple[float, float]
    at: int


@dataclass(frozen=True)
class Found:
    """What a setting gave with the first `count` images."""

    setting: Setting
    guidance: float
    count: int
    fid: Score
    inception_score: Score | None
    moved: Tensor = field(repr=False)
    """each image's influence on the FID (count,)"""


def difference(a: Found, b: Found) -> Score:
    """How much larger a's FID is than b's, on the same noise and classes, with the deviation of that."""
    n = min(a.count, b.count)
    return Score(a.fid.value - b.fid.value, scores.deviation_of_mean(a.moved[:n] - b.moved[:n]))


@dataclass
class Search:
    """A search over guidance, averages and intervals; what was found so far is in `found` (by setting and count)."""

    examiner: Examiner
    job: Drawing
    count: int
    emas: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    low: float = LOW
    high: float = HIGH
    step: float = STEP
    shown: Callable[["Search"], object] = lambda search: None
    """called when there is something new to show"""
    found: dict[tuple[Setting, int], Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.step > 0 or not self.low <= self.high or not math.isfinite(self.low + self.high + self.step):
            raise ValueError(
                f"guidances {self.low:g} to {self.high:g} by {self.step:g}; low <= high and a step above 0 are needed"
            )
        if self.last > 1000:
            raise ValueError(f"guidances {self.low:g} to {self.high:g} by {self.step:g} are {self.last + 1}; at most 1001")
        if self.count < 2 * SMALL:
            raise ValueError(f"count is {self.count}; it must be {2 * SMALL} or more")
        if not self.emas or not self.intervals:
            raise ValueError("there is no average, or no interval, to search over")

    @property
    def last(self) -> int:
        return round((self.high - self.low) / self.step)

    @property
    def small(self) -> int:
        """Images of a first look, in whole units."""
        unit = self.job.unit
        return min(self.count, max(-(-self.count // SMALL // unit) * unit, unit))

    def guidance(self, at: int) -> float:
        return round(self.low + at * self.step, 9)

    def look(self, setting: Setting, count: int) -> Found:
        """The score of a setting, drawn where it is not known."""
        key = setting, count
        if key not in self.found:
            guidance = self.guidance(setting.at)
            job = replace(
                self.job, weights=self.examiner.artist.weights(setting.ema), ema=setting.ema, guidance=guidance,
                interval=setting.interval,
            )  # fmt: skip
            title = f"ema {setting.ema:g}, guidance {guidance:g}"
            drawn = self.examiner.features(job.without_idle_settings(), count, title)
            fid, moved = scores.fid(drawn["features"].split(scores.CHUNK), self.examiner.reference.statistics)
            answer = scores.inception_score(drawn["logits"]) if "logits" in drawn else None
            self.found[key] = Found(setting, guidance, count, fid, answer, moved)
            self.shown(self)
        return self.found[key]

    def whole(self, setting: Setting) -> Found:
        return self.look(setting, self.count)

    def downhill(self, start: Found, strides: Sequence[int]) -> Found:
        """The best setting on the way down the grid of guidances, in strides that become shorter."""
        best = start
        for stride in strides:
            while True:
                beside = [at for at in (best.setting.at - stride, best.setting.at + stride) if 0 <= at <= self.last]
                next_best = min([best, *(self.whole(best.setting._replace(at=at)) for at in beside)], key=value)
                if next_best is best:
                    break
                best = next_best
        return best

    def cheap(self) -> Found:
        """The best setting, by a fraction of the grid."""
        coarse = sorted({*range(0, self.last + 1, COARSE), self.last})
        curves = [(e, i) for e in self.emas for i in self.intervals]
        first = {c: min((self.look(Setting(*c, at), self.small) for at in coarse), key=value) for c in curves}
        best: Found | None = None
        for curve in sorted(curves, key=lambda c: value(first[c])):
            start = first[curve].setting if best is None else Setting(*curve, best.setting.at)
            here = self.whole(start)
            if best is None:
                best = self.downhill(here, (2, 1))
                continue
            worse = difference(here, best)
            if worse.value < WORSE * worse.deviation:
                best = min(best, self.downhill(here, (1,)), key=value)
        assert best is not None
        return best

    def full(self) -> Found:
        """The best setting of the whole grid (the paper's way)."""
        grid = [Setting(e, i, at) for e in self.emas for i in self.intervals for at in range(self.last + 1)]
        return min((self.whole(setting) for setting in grid), key=value)

    @property
    def drawn(self) -> int:
        """Images that all settings looked at took, each counted once; unguided, the interval makes no difference."""
        most: dict[Any, int] = {}
        for (setting, count), found in self.found.items():
            key = setting if found.guidance != 1 else (setting.ema, setting.at)
            most[key] = max(most.get(key, 0), self.job.units(count) * self.job.unit)
        return sum(most.values())

    @property
    def grid(self) -> int:
        """Images that the whole grid takes."""
        settings = len(self.emas) * (len(self.intervals) * (self.last + 1))
        return settings * self.job.units(self.count) * self.job.unit

    def curve(self, ema: float, interval: tuple[float, float]) -> list[Found]:
        """What was found of one average and interval with all images, by guidance."""
        here = [f for (s, n), f in self.found.items() if (s.ema, s.interval) == (ema, interval) and n == self.count]
        return sorted(here, key=lambda f: f.guidance)


def value(found: Found) -> float:
    return found.fid.value


def certainty(search: Search, best: Found) -> list[str]:
    """How sure it is that the best setting is not the best by chance."""
    rivals = [f for (_, n), f in search.found.items() if n == best.count and f is not best]
    apart = [(f, difference(f, best)) for f in rivals]
    near = [f for f, d in apart if d.value < 2 * d.deviation]
    lines = [
        f"the best: ema {best.setting.ema:g}, guidance {best.guidance:g}, interval {words(best.setting.interval)}: "
        f"FID {best.fid.value:.4g} ± {best.fid.deviation:.2g} over other samples of {best.count:,}"
    ]
    if near:
        same = [f.guidance for f in near if f.setting.ema == best.setting.ema] + [best.guidance]
        others = sorted({f"{f.setting.ema:g}" for f in near} - {f"{best.setting.ema:g}"})
        also = f"; nor can ema {', '.join(others)}" if others else ""
        span = f"guidance {min(same):g} to {max(same):g} cannot be told from it"
        lines.append(f"{span} (less than two deviations of the difference){also}")
    clear = [(f, d) for f, d in apart if d.value >= 2 * d.deviation]
    if clear:
        f, d = min(clear, key=lambda pair: pair[1].value)
        next_one = f"ema {f.setting.ema:g}, guidance {f.guidance:g}"
        lines.append(f"the nearest that is surely worse: {next_one}, by {d.value:.3g} ± {d.deviation:.2g}")
    edge = best.setting.at in (0, search.last) and search.last > 0
    if edge:
        lines.append(f"the best guidance, {best.guidance:g}, is at the end of the range: look beyond it")
    return lines


def words(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g} to {interval[1]:g}"


def report(search: Search, best: Found, out: Path, seconds: float, command: str = "") -> dict[str, Any]:
    """Write search.json, search.md and, with matplotlib, search.png; returns what search.json says."""
    rows = [
        {
            "ema": s.ema,
            "interval": list(s.interval),
            "guidance": f.guidance,
            "images": n,
            "fid": f.fid._asdict(),
            "inception_score": f.inception_score._asdict() if f.inception_score else None,
            "above_best": difference(f, best)._asdict() if n == best.count else None,
        }
        for (s, n), f in sorted(search.found.items(), key=lambda item: item[0])
    ]
    facts = {
        "best": {"ema": best.setting.ema, "guidance": best.guidance, "interval": list(best.setting.interval)},
        "fid": best.fid._asdict(),
        "certainty": certainty(search, best),
        "images_drawn": search.drawn,
        "images_of_the_whole_grid": search.grid,
        "sampling": search.job.describe(),
        "reference": search.examiner.reference.facts,
        "features": {"name": search.examiner.extractor.name, "identity": search.examiner.extractor.identity},
        "settings": rows,
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "command": command,
    }
    lines = ["# Guidance and average", "", *(f"- {line}" for line in facts["certainty"])]
    lines += [
        f"- {search.drawn:,} images drawn; the whole grid is {search.grid:,}",
        *([f"- command: `{command}`"] if command else []),
    ]
    lines += ["", "| ema | interval | guidance | images | FID | above the best | IS |", "|---" * 7 + "|"]
    for row in rows:
        above = row["above_best"]
        lines.append(
            f"| {row['ema']:g} | {words(row['interval'])} | {row['guidance']:g} | {row['images']:,} | {plain(row['fid'])} "
            f"| {plain(above) if above else ''} | {plain(row['inception_score']) if row['inception_score'] else ''} |"
        )
    picture = curves(search, best)
    if picture:
        disk.write(out / "search.png", picture)
    disk.write(out / "search.md", "\n".join([*lines, ""]).encode())
    disk.write(out / "search.json", json.dumps(facts, indent=1).encode())
    return facts


def plain(score: dict[str, float]) -> str:
    return f"{score['value']:.4f} ± {score['deviation']:.4f}"


def curves(search: Search, best: Found) -> bytes | None:
    """FID and IS against guidance, a colour an average, dashed without an interval (cf. Fig. 6); None without matplotlib."""
    from justimage.pictures import plotted

    def draw(figure: Any) -> None:
        scored = any(f.inception_score for f in search.found.values())
        panels = figure.subplots(1, 1 + scored, squeeze=False)[0]
        for number, ema in enumerate(search.emas):
            for interval in search.intervals:
                curve = search.curve(ema, interval)
                if not curve:
                    continue
                x = [f.guidance for f in curve]
                style: dict[str, Any] = dict(
                    color=f"C{number}", linestyle="-" if interval != (0.0, 1.0) else "--", marker="o", markersize=3
                )
                label = f"ema {ema:g}" + (f", {words(interval)}" if len(search.intervals) > 1 else "")
                y, spread = (torch.tensor([getattr(f.fid, side) for f in curve]) for side in ("value", "deviation"))
                panels[0].plot(x, y, label=label, **style)
                panels[0].fill_between(x, y - spread, y + spread, color=f"C{number}", alpha=0.12, linewidth=0)
                if scored:
                    answers = [f.inception_score.value if f.inception_score else math.nan for f in curve]
                    panels[1].plot(x, answers, **style)
        panels[0].plot([best.guidance], [best.fid.value], marker="*", color="black", markersize=11, linestyle="none")
        panels[0].set(xlabel="guidance", ylabel=f"FID, {search.count:,} images")
        panels[0].legend(fontsize=8)
        if scored:
            panels[1].set(xlabel="guidance", ylabel="IS")
        for panel in panels:
            panel.grid(alpha=0.3)

    return plotted(draw, (9, 3.6))
