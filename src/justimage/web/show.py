"""Things that the page shows: pictures as HTML, errors in one line, numbers from a browser checked."""

import base64
import html
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from justimage import figures
from justimage.cli import one_line
from justimage.sampling import Denoiser

EXTRA = "pip install 'justimage[web]'"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events: no cover over what changes, and no place in Gradio's API."""
DRAWS: dict[str, Any] = QUIET | {"concurrency_id": "draw", "concurrency_limit": 24}
"""Of events that draw: many are begun, and share the machine by turns."""


@contextmanager
def refusals() -> Iterator[None]:
    """Within the block, errors become a message on the page: a mistake in one line, anything unforeseen without its details."""
    import gradio as gr

    try:
        yield
    except gr.Error:
        raise
    except (ValueError, OSError) as error:
        raise gr.Error(html.escape(one_line(error)), duration=8, print_exception=False) from None
    except Exception as error:
        logging.getLogger("justimage").exception("the page")
        message = "out of memory; ask for fewer images" if isinstance(error, torch.OutOfMemoryError) else "this failed here"
        raise gr.Error(message, print_exception=False) from None


def saying(function: Callable[..., Iterator[Any]], line: Any, shown: Sequence[Any]) -> Callable[..., Iterator[Any]]:
    """An event's function whose errors are said in a line among what it shows, too: there they stay."""
    import gradio as gr

    @wraps(function)  # Gradio reads its parameters
    def said(*given: Any) -> Iterator[Any]:
        try:
            yield from function(*given)
        except gr.Error as error:
            yield tuple(note(html.unescape(error.message)) if field is line else gr.skip() for field in shown)
            raise

    return said


def finite(value: Any, name: str, low: float, high: float) -> float:
    """A number from a browser; ValueError for anything else, or one out of range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:40]!r}; allowed: {low:g} to {high:g}")
    return float(value)


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number from a browser."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:40]!r}; allowed: whole numbers from {low} to {high}")
    if value != int(value):
        raise ValueError(f"{name} is {value:g}; allowed: whole numbers from {low} to {high}")
    return int(value)


def pixels(denoiser: Denoiser, z: Tensor) -> Tensor:
    """Images or noisy samples as the network sees them, as uint8 on the CPU."""
    return denoiser.normalization.to_uint8(denoiser.normalization.denormalize(z).cpu())


def data_uri(image: Image.Image, lossless: bool = False) -> str:
    """A picture inside a page: nothing is written for it, and no address leads to it."""
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(image: Image.Image | None, caption: str, lossless: bool = False, hint: str = "", pixels: bool = True) -> str:
    """A picture with its caption below; without one, an empty frame. pixels: whether they stay sharp squares when enlarged."""
    words, kind = html.escape(caption, quote=True), ' class="ji-pixels"' if pixels else ""
    inside = f'<img src="{data_uri(image, lossless)}" alt="{words}"{kind}>' if image else f"<div>{html.escape(hint)}</div>"
    return f'<figure class="ji">{inside}<figcaption>{words}</figcaption></figure>'


def picture_row(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Small pictures beside each other, each with its caption."""
    return f'<div class="ji-row">{"".join(picture(image, caption, lossless=True) for image, caption in pictures)}</div>'


def command_box(label: str, name: str = "") -> Any:
    """A field that shows a command, to be copied."""
    import gradio as gr

    return gr.Textbox(
        label=label, interactive=False, lines=2, max_lines=10, buttons=["copy"], elem_classes="ji-code", elem_id=name or None
    )  # fmt: skip


def stop_with(button: Any, events: list[Any], line: Any = None) -> None:
    """Let a button end events, and say so in a line when no frame of theirs can follow."""
    ended = button.click(None, None, None, cancels=events, **QUIET)
    if line is not None:
        ended.then(lambda: note("stopped"), None, line, **QUIET)


def sheet(images: Tensor, columns: int = 0) -> Image.Image:
    """Images (n, channels, height, width) in a grid, about square."""
    return figures.image_grid(images, columns or math.ceil(math.sqrt(len(images))))


def note(text: str) -> str:
    """A line of text."""
    return f'<p class="ji-note" role="status" aria-live="polite">{html.escape(text)}</p>'
