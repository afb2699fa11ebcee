"""Pictures for people: grids of images, the way from noise to image, and the course of a training."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
INK, PAPER = (40, 40, 40), (255, 255, 255)


def to_pil(image: Tensor, scale: int = 1) -> Image.Image:
    """One uint8 image (channels, height, width), each pixel enlarged; other than 1, 3, 4 channels show their first."""
    channels = image if image.shape[0] in (1, 3, 4) else image[:1]
    pixels = channels.movedim(0, -1).squeeze(-1).cpu().numpy()
    return Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.NEAREST)


def display_scale(images: Tensor) -> int:
    """How much to upscale small images so that a person sees them."""
    return max(1, 64 // max(images.shape[-2:]))


def image_grid(images: Tensor, columns: int, top: Sequence[str] = (), left: Sequence[str] = (), gap: int = 2) -> Image.Image:
    """uint8 images (n, channels, height, width) row by row, with words above the columns and before the rows."""
    scale = display_scale(images)
    height, width = images.shape[-2] * scale + gap, images.shape[-1] * scale + gap
    font = ImageFont.load_default(size=13)
    above = 20 if any(top) else gap
    before = max((int(font.getlength(word)) + 10 for word in left), default=gap)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (before + columns * width, above + rows * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        sheet.paste(to_pil(image, scale).convert("RGB"), (before + i % columns * width, above + i // columns * height))
    for i, word in enumerate(top[:columns]):
        pen.text((before + i * width + width // 2, above // 2), shorten(word, width, font), INK, font, anchor="mm")
    for i, word in enumerate(left[:rows]):
        pen.text((before - 6, above + i * height + height // 2), word, INK, font, anchor="rm")
    return sheet


def shorten(word: str, width: float, font: Any) -> str:
    while len(word) > 1 and font.getlength(word) > width:
        word = word[:-1]
    return word


def encode(sheet: Image.Image, suffix: str) -> bytes:
    """A picture in the format of a file name's suffix, one of FORMATS."""
    buffer = io.BytesIO()
    sheet.save(buffer, FORMATS[suffix.lower()], quality=95)
    return buffer.getvalue()


def encode_png(sheet: Image.Image) -> bytes:
    return encode(sheet, ".png")


def plot_png(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes | None:
    """A PNG of what `draw` makes on a matplotlib figure of that size in inches; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=size, layout="tight")
    FigureCanvasAgg(figure)
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def running_mean(seen: Sequence[float], values: Sequence[float], span: float = 0.0) -> np.ndarray:
    """At each line of a log the mean over the last `span` images, in which each line counts by the images that it covers.

    seen: images at the end of each line, rising; values: means over the images since the line before. A span shorter than
    the longest line is that line's, so that one which a save or a preview has cut short never stands alone.
    """
    ends, covered = np.asarray(seen, dtype=float), np.diff(seen, prepend=0.0)
    span = max(span, covered.max(initial=0.0))
    knots, total = np.append(0.0, ends), np.append(0.0, np.cumsum(covered * np.asarray(values)))
    begins = np.maximum(ends - span, 0.0)
    return (total[1:] - np.interp(begins, knots, total)) / (ends - begins)


def loss_curve(metrics: Sequence[dict[str, Any]], previews: Sequence[tuple[str, Image.Image]] = ()) -> bytes | None:
    """A PNG of the loss against images seen, previews below it; None where matplotlib is not installed."""
    lines = [(m["images_seen"], m["loss"]) for m in metrics if math.isfinite(m.get("loss", math.nan))]
    seen, loss = [s for s, _ in lines], [value for _, value in lines]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(seen, running_mean(seen, loss), color="#b8c4d6", linewidth=0.8)
        axes.plot(seen, running_mean(seen, loss, max(seen, default=0) / 50), color="#1f4e8c", linewidth=1.6)
        axes.set(xlabel="images seen", ylabel="training loss", yscale="log")
        axes.grid(alpha=0.3)

    curve = plot_png(draw, (10, 3.4))
    return curve and encode_png(stack_below(curve, previews))


def stack_below(plot: bytes, sheets: Sequence[tuple[str, Image.Image]], gap: int = 10) -> Image.Image:
    """A plot, and below it pictures with words above each: in the fewest columns in which they are no higher than it."""
    top = Image.open(io.BytesIO(plot)).convert("RGB")
    if not sheets:
        return top
    font = ImageFont.load_default(size=13)
    above = 20 if any(words for words, _ in sheets) else 0

    def heights(columns: int) -> tuple[int, list[int]]:
        """Of the columns the width, and of each row the height."""
        width = (top.width - gap * (columns + 1)) // columns
        high = [round(sheet.height * width / sheet.width) + above + gap for _, sheet in sheets]
        return width, [max(high[i : i + columns]) for i in range(0, len(high), columns)]

    fitting = (n for n in range(1, len(sheets)) if sum(heights(n)[1]) <= top.height)
    columns = next(fitting, len(sheets))
    width, rows = heights(columns)
    page = Image.new("RGB", (top.width, top.height + sum(rows)), PAPER)
    page.paste(top, (0, 0))
    pen = ImageDraw.Draw(page)
    for i, (words, sheet) in enumerate(sheets):
        x, y = gap + i % columns * (width + gap), top.height + sum(rows[: i // columns])
        how = Image.Resampling.LANCZOS if width < sheet.width else Image.Resampling.NEAREST
        pen.text((x, y + 4), words, INK, font)
        page.paste(sheet.convert("RGB").resize((width, round(sheet.height * width / sheet.width)), how), (x, y + above))
    return page


def denoising_grid(clean: Tensor, noisy: Tensor, predicted: Tensor, t: float, by: str) -> Image.Image:
    """Three rows: images, the same with noise at t, and what the network makes of them in one step (cf. Fig. 7)."""
    return image_grid(torch.cat([clean, noisy, predicted]), len(clean), left=["data", f"t = {t:g}", f"{by}-pred."])
