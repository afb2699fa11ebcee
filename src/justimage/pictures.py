"""Pictures for people: grids of images, the way from noise to image, and the course of a training."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
INK, PAPER = (40, 40, 40), (255, 255, 255)


def picture(image: Tensor, scale: int = 1) -> Image.Image:
    """One uint8 image (channels, height, width), each pixel enlarged; other than 1, 3, 4 channels show their first."""
    channels = image if image.shape[0] in (1, 3, 4) else image[:1]
    pixels = channels.movedim(0, -1).squeeze(-1).cpu().numpy()
    return Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.NEAREST)


def fitting_scale(images: Tensor) -> int:
    """How much to enlarge small images so that a person sees them."""
    return max(1, 64 // max(images.shape[-2:]))


def grid(images: Tensor, columns: int, top: Sequence[str] = (), left: Sequence[str] = (), gap: int = 2) -> Image.Image:
    """uint8 images (n, channels, height, width) row by row, with words above the columns and before the rows."""
    scale = fitting_scale(images)
    height, width = images.shape[-2] * scale + gap, images.shape[-1] * scale + gap
    font = ImageFont.load_default(size=13)
    above = 20 if any(top) else gap
    before = max((int(font.getlength(word)) + 10 for word in left), default=gap)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (before + columns * width, above + rows * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        sheet.paste(picture(image, scale).convert("RGB"), (before + i % columns * width, above + i // columns * height))
    for i, word in enumerate(top[:columns]):
        pen.text((before + i * width + width // 2, above // 2), shortened(word, width, font), INK, font, anchor="mm")
    for i, word in enumerate(left[:rows]):
        pen.text((before - 6, above + i * height + height // 2), word, INK, font, anchor="rm")
    return sheet


def shortened(word: str, width: float, font: Any) -> str:
    while len(word) > 1 and font.getlength(word) > width:
        word = word[:-1]
    return word


def encoded(sheet: Image.Image, suffix: str) -> bytes:
    """A picture in the format of a file name's suffix, one of FORMATS."""
    buffer = io.BytesIO()
    sheet.save(buffer, FORMATS[suffix.lower()], quality=95)
    return buffer.getvalue()


def png(sheet: Image.Image) -> bytes:
    return encoded(sheet, ".png")


def plotted(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes | None:
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


def course(metrics: Sequence[dict[str, Any]], previews: Sequence[tuple[str, Image.Image]] = ()) -> bytes | None:
    """A PNG of the loss against images seen, previews below it; None where matplotlib is not installed."""

    def draw(figure: Any) -> None:
        heights = [3.2] + [1.35] * len(previews)
        axes = np.atleast_1d(figure.subplots(len(heights), height_ratios=heights))
        lines = [m for m in metrics if "loss" in m]
        seen, loss = [m["images_seen"] for m in lines], np.array([m["loss"] for m in lines])
        window = max(1, len(loss) // 50)
        axes[0].plot(seen, loss, color="#b8c4d6", linewidth=0.8)
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes[0].plot(seen[window - 1 :], smooth, color="#1f4e8c", linewidth=1.6)
        axes[0].set(xlabel="images seen", ylabel="training loss", yscale="log")
        axes[0].grid(alpha=0.3)
        for panel, (title, sheet) in zip(axes[1:], previews, strict=True):
            panel.imshow(sheet)
            panel.set_title(title, fontsize=9, loc="left")
            panel.axis("off")

    return plotted(draw, (8, 3.2 + 1.35 * len(previews)))


def denoising(clean: Tensor, noisy: Tensor, predicted: Tensor, t: float, by: str) -> Image.Image:
    """Three rows: images, the same with noise at t, and what the network makes of them in one step (cf. Fig. 7)."""
    return grid(torch.cat([clean, noisy, predicted]), len(clean), left=["data", f"t = {t:g}", f"{by}-pred."])
