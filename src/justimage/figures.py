"""Figures: labelled grids of images, and plots with grids below them, such as the loss curve of a training."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from justimage.normalization import to_uint8

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LINE = 15
"""Pixels from one line of a label to the next."""
INK, PAPER = (40, 40, 40), (255, 255, 255)


def to_pil(image: Tensor, scale: int = 1) -> Image.Image:
    """Convert a uint8 image (channels, height, width), upscaled by a whole factor; of 2, 5 or more channels show the first."""
    channels = image if image.shape[0] in (1, 3, 4) else image[:1]
    pixels = channels.movedim(0, -1).squeeze(-1).cpu().numpy()
    return Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.NEAREST)


def display_scale(images: Tensor) -> int:
    """Return the factor by which small images are upscaled to be visible."""
    return max(1, 96 // max(images.shape[-2:]))


def image_grid(images: Tensor, columns: int, top: Sequence[str] = (), left: Sequence[str] = (), gap: int = 2) -> Image.Image:
    """Arrange uint8 images (n, channels, height, width) row by row, with labels above the columns and left of the rows."""
    scale = display_scale(images)
    height, width = images.shape[-2] * scale + gap, images.shape[-1] * scale + gap
    font = ImageFont.load_default(size=13)
    above = [wrap(label, width, font) for label in top[:columns]]
    y0 = max((LINE * len(lines) + 5 for lines in above if any(lines)), default=gap)
    x0 = max((int(font.getlength(label)) + 10 for label in left), default=gap)
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (x0 + columns * width, y0 + rows * height), PAPER)
    pen = ImageDraw.Draw(grid)
    for i, image in enumerate(images):
        grid.paste(to_pil(image, scale).convert("RGB"), (x0 + i % columns * width, y0 + i // columns * height))
    for i, lines in enumerate(above):
        pen.multiline_text((x0 + i * width + width // 2, y0 // 2), "\n".join(lines), INK, font, "mm", LINE - 13, "center")
    for i, label in enumerate(left[:rows]):
        pen.text((x0 - 6, y0 + i * height + height // 2), label, INK, font, anchor="rm")
    return grid


def as_image(x: Tensor, channels: int) -> Tensor:
    """What a network is told, (b, any channels, height, width) around [-1, 1], as uint8 images of so many channels."""
    x = x[:, :channels] if x.shape[1] >= channels else x[:, :1].expand(-1, channels, -1, -1)
    return to_uint8(x)


def wrap(label: str, width: float, font: Any) -> list[str]:
    """Break a label into lines of a width in pixels, at spaces and after "_" and "-"; a longer part is cut, to at least one
    character."""
    lines = [""]
    for part in re.findall(r"\s*[^\s_-]+[_-]*|[_-]+", label):
        if lines[-1] and font.getlength(lines[-1] + part) > width:
            lines.append("")
        line = (lines[-1] + part).strip()
        while len(line) > 1 and font.getlength(line) > width:
            line = line[:-1]
        lines[-1] = line
    return lines


def encode(image: Image.Image, suffix: str) -> bytes:
    """Encode an image in the format of a file suffix, one of FORMATS."""
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[suffix.lower()], quality=95)
    return buffer.getvalue()


def encode_png(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Encode an image as a PNG. text: entries that are kept in the file, by keyword."""
    info, buffer = PngInfo(), io.BytesIO()
    for keyword, words in (text or {}).items():
        info.add_itxt(keyword, words)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def plot_png(plot: Callable[[Any], None], size: tuple[float, float]) -> bytes | None:
    """Call `plot` with a matplotlib figure, size in inches, and return it as a PNG; None if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=size, layout="tight")
    plot(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def running_mean(seen: Sequence[float], values: Sequence[float], span: float = 0.0) -> np.ndarray:
    """Return the mean over the last `span` images at each entry of a log, weighted by the number of images of each entry.

    seen: images at the end of each entry, rising; values: means over the images since the previous entry. The span is at
    least that of the longest entry, so that an entry cut short by a checkpoint or a preview is never shown alone.
    """
    ends, covered = np.asarray(seen, dtype=float), np.diff(seen, prepend=0.0)
    span = max(span, covered.max(initial=0.0))
    knots, total = np.append(0.0, ends), np.append(0.0, np.cumsum(covered * np.asarray(values)))
    starts = np.maximum(ends - span, 0.0)
    return (total[1:] - np.interp(starts, knots, total)) / (ends - starts)


def loss_curve(metrics: Sequence[dict[str, Any]], previews: Sequence[tuple[str, Image.Image]] = ()) -> bytes | None:
    """Return a PNG of the loss against images seen, with previews below it; None if matplotlib is not installed."""
    finite = [m for m in metrics if math.isfinite(m.get("loss", math.nan))]
    seen, loss = [m["images_seen"] for m in finite], [m["loss"] for m in finite]

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(seen, running_mean(seen, loss), color="#b8c4d6", linewidth=0.8)
        axes.plot(seen, running_mean(seen, loss, max(seen, default=0) / 50), color="#1f4e8c", linewidth=1.6)
        axes.set(xlabel="images seen", ylabel="training loss", yscale="log")
        axes.grid(alpha=0.3)

    curve = plot_png(plot, (10, 3.4))
    return curve and encode_png(stack_below(curve, previews))


def stack_below(plot: bytes, images: Sequence[tuple[str, Image.Image]], gap: int = 10) -> Image.Image:
    """Place images, each below its label, under a plot: in the fewest columns that make them no higher than the plot."""
    top = Image.open(io.BytesIO(plot)).convert("RGB")
    label_height = 20 if any(label for label, _ in images) else 0

    def layout(columns: int) -> tuple[int, list[int]]:
        """Return the width of the columns and the height of each row."""
        width = (top.width - gap * (columns + 1)) // columns
        heights = [round(image.height * width / image.width) + label_height + gap for _, image in images]
        return width, [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]

    columns = next((n for n in range(1, len(images)) if sum(layout(n)[1]) <= top.height), max(len(images), 1))
    width, rows = layout(columns)
    page = Image.new("RGB", (top.width, top.height + sum(rows)), PAPER)
    page.paste(top, (0, 0))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    for i, (label, image) in enumerate(images):
        x, y = gap + i % columns * (width + gap), top.height + sum(rows[: i // columns])
        method = Image.Resampling.LANCZOS if width < image.width else Image.Resampling.NEAREST
        size = (width, round(image.height * width / image.width))
        pen.text((x, y + 4), label, INK, font)
        page.paste(image.convert("RGB").resize(size, method), (x, y + label_height))
    return page


def denoising_grid(clean: Tensor, noisy: Tensor, predicted: Tensor, t: float, prediction: str) -> Image.Image:
    """Show images, the same with noise at t, and the clean images predicted from them, in three rows (cf. Fig. 7)."""
    return image_grid(torch.cat([clean, noisy, predicted]), len(clean), left=["data", f"t = {t:g}", f"{prediction}-pred."])
