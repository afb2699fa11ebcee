"""The report of a search: the best setting, how sure that is, a table, and curves of FID and IS against guidance."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from justimage import disk, figures
from justimage.evaluation.search import Search, Trial, fid_difference, format_interval


def summarize(search: Search, best: Trial) -> list[str]:
    """How sure it is that the best setting is not the best by chance."""
    rivals = [f for (_, n), f in search.trials.items() if n == best.count and f is not best]
    apart = [(f, d) for f in rivals if any(d := fid_difference(f, best))]  # unguided, two intervals are the same images
    near = [f for f, d in apart if d.value < 2 * d.std]
    lines = [
        f"the best: ema {best.setting.ema:g}, guidance {best.guidance:g}, interval {format_interval(best.setting.interval)}: "
        f"FID {best.fid.value:.4g} ± {best.fid.std:.2g} over other samples of {best.count:,}"
    ]
    if near:
        same = [f.guidance for f in near if f.setting[:2] == best.setting[:2]] + [best.guidance]
        others = sorted({f"{f.setting.ema:g}" for f in near} - {f"{best.setting.ema:g}"})
        also = f"; nor can ema {', '.join(others)}" if others else ""
        span = f"guidance {min(same):g} to {max(same):g} cannot be distinguished from it"
        lines.append(f"{span} (less than two deviations of the difference){also}")
    clear = [(f, d) for f, d in apart if d.value >= 2 * d.std]
    if clear:
        f, d = min(clear, key=lambda pair: pair[1].value)
        next_one = f"ema {f.setting.ema:g}, guidance {f.guidance:g}"
        lines.append(f"the nearest that is surely worse: {next_one}, by {d.value:.3g} ± {d.std:.2g}")
    edge = best.setting.guidance_index in (0, search.last_index) and search.last_index > 0
    if edge:
        lines.append(f"the best guidance, {best.guidance:g}, is at the end of the range: look beyond it")
    return lines


def write_report(search: Search, best: Trial, out: Path, seconds: float, command: str = "") -> dict[str, Any]:
    """Write search.json, search.md and, with matplotlib, search.png; returns what search.json says."""
    rows = [
        {
            "ema": s.ema,
            "interval": list(s.interval),
            "guidance": f.guidance,
            "images": n,
            "fid": f.fid._asdict(),
            "inception_score": f.inception_score._asdict() if f.inception_score else None,
            "above_best": fid_difference(f, best)._asdict() if n == best.count else None,
        }
        for (s, n), f in sorted(search.trials.items(), key=lambda item: item[0])
    ]
    facts = {
        "best": {"ema": best.setting.ema, "guidance": best.guidance, "interval": list(best.setting.interval)},
        "fid": best.fid._asdict(),
        "certainty": summarize(search, best),
        "images_sampled": search.images_sampled,
        "images_of_the_whole_grid": search.grid_images,
        "sampling": search.job.describe(),
        "reference": search.sampler.reference.info,
        "features": {"name": search.sampler.extractor.name, "fingerprint": search.sampler.extractor.fingerprint},
        "settings": rows,
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "command": command,
    }
    lines = ["# Guidance and average", "", *(f"- {line}" for line in facts["certainty"])]
    lines += [
        f"- {search.images_sampled:,} images sampled; the whole grid is {search.grid_images:,}",
        *([f"- command: `{command}`"] if command else []),
    ]
    lines += ["", "| ema | interval | guidance | images | FID | above the best | IS |", "|---" * 7 + "|"]
    for row in rows:
        above, inception_score = row["above_best"], row["inception_score"]
        cells = [
            f"{row['ema']:g}", format_interval(row["interval"]), f"{row['guidance']:g}", f"{row['images']:,}",
            format_score(row["fid"]), format_score(above) if above else "",
            format_score(inception_score) if inception_score else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    picture = plot_curves(search, best)
    if picture:
        disk.write(out / "search.png", picture)
    disk.write(out / "search.md", "\n".join([*lines, ""]).encode())
    disk.write(out / "search.json", json.dumps(facts, indent=1).encode())
    return facts


def format_score(score: dict[str, float]) -> str:
    return f"{score['value']:.4f} ± {score['std']:.4f}"


def plot_curves(search: Search, best: Trial) -> bytes | None:
    """FID and IS against guidance, a colour an average, dashed without an interval (cf. Fig. 6); None without matplotlib."""

    def draw(figure: Any) -> None:
        scored = any(f.inception_score for f in search.trials.values())
        panels = figure.subplots(1, 1 + scored, squeeze=False)[0]
        for number, ema in enumerate(search.emas):
            for interval in search.intervals:
                for count in {search.coarse_count: None, search.count: None}:
                    curve, whole = search.curve(ema, interval, count), count == search.count
                    x, dashes = [f.guidance for f in curve], "-" if interval != (0.0, 1.0) else "--"
                    style: dict[str, Any] = dict(color=f"C{number}", linestyle=dashes, marker="o", markersize=3)
                    style |= {} if whole else {"alpha": 0.35, "markerfacecolor": "none"}
                    label = f"ema {ema:g}" + (f", {format_interval(interval)}" if len(search.intervals) > 1 else "")
                    y, spread = (torch.tensor([getattr(f.fid, side) for f in curve]) for side in ("value", "std"))
                    panels[0].plot(x, y, label=label if whole else None, **style)
                    if whole:
                        panels[0].fill_between(x, y - spread, y + spread, color=f"C{number}", alpha=0.12, linewidth=0)
                    if scored:
                        answers = [f.inception_score.value if f.inception_score else math.nan for f in curve]
                        panels[1].plot(x, answers, **style)
        panels[0].plot([best.guidance], [best.fid.value], marker="*", color="black", markersize=11, linestyle="none")
        pale = (
            f" (pale: {search.coarse_count:,})"
            if search.curve(best.setting.ema, best.setting.interval, search.coarse_count)
            else ""
        )
        panels[0].set(xlabel="guidance", ylabel=f"FID, {search.count:,} images{pale}")
        panels[0].legend(fontsize=8)
        if scored:
            panels[1].set(xlabel="guidance", ylabel="IS")
        for panel in panels:
            panel.grid(alpha=0.3)

    return figures.plot_png(draw, (9, 3.6))
