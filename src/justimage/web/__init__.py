"""A page in the browser over the package's own functions: draw, compare, explore, edit, watch.

    from justimage.web import build
    build(["runs/photos"]).launch()

Needs pip install 'justimage[web]'. turns.py shares the machine among visitors, guard.py stands at the door, models.py knows
what may be used, downloads.py what may be downloaded; drawing.py is the work itself, and each tab has a file.
"""

import asyncio
import hmac
import os
import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from justimage.cli.options import checked_device
from justimage.web import compare, draw, edit, explore, watch
from justimage.web.downloads import Downloads
from justimage.web.guard import MAX_UPLOAD, POLICY, Guard, Visitors, is_loopback
from justimage.web.models import Models
from justimage.web.show import EXTRA, QUIET, note, refusals
from justimage.web.style import CSS, HEAD

MAX_WAITING, MAX_SESSIONS = 200, 300
"""Events that wait, and visitors whose history is kept."""
MAX_PIXELS = 2**23
"""Of a photograph: half as many as are decoded at most."""
WRONG_SECONDS = 1.0
"""Until a wrong password is answered."""


@dataclass
class Page:
    """A page that is built, and what it stands on."""

    blocks: Any
    """gradio.Blocks"""
    models: Models
    files: Downloads
    demo: watch.Demo

    def launch(
        self,
        host: str | None = None,
        port: int | None = None,
        password: str = "",
        *,
        open_browser: bool = False,
        wait: bool = True,
    ) -> str:
        """Serve the page until it is interrupted, or return its address at once where it should not wait.

        host: by default this machine only, or, as a Space of Hugging Face, all addresses. Any other host needs a password.
        ValueError for one without, and for a port that is taken.
        """
        from gradio.themes import Default as Theme
        from starlette.middleware import Middleware

        space = "SPACE_ID" in os.environ
        host = host or ("0.0.0.0" if space else "127.0.0.1")
        check_host(host, password)
        visitors = Visitors()
        policy = "" if space else POLICY  # the Hub shows a Space in a frame
        local = is_loopback(host) and not password
        guard = Middleware(Guard, visitors=visitors, folder=self.files.root, policy=policy, local=local)  # pyright: ignore[reportArgumentType]
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        self.blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=4, api_open=False)
        try:
            _, address, _ = self.blocks.launch(
                server_name=host, server_port=port, auth=check_of(password) if password else None,
                auth_message="Any name; the password is the one that this page was started with.", quiet=True, share=False,
                prevent_thread_lock=True, max_file_size=MAX_UPLOAD, allowed_paths=[], state_session_capacity=MAX_SESSIONS,
                show_error=False, footer_links=[], ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False,
                app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
                theme=Theme(
                    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"],
                ),
                css=CSS, head=HEAD,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"port {port or '7860 to 7959'} of {host} cannot be used; give another --port") from error
        if open_browser:
            webbrowser.open(address)
        if wait:
            print(f"{address}{for_others(address, host)}  (Ctrl-C ends it)", flush=True)
            self.blocks.block_thread()
        return address

    def close(self) -> None:
        """End the page and what it started."""
        self.demo.stop()
        self.blocks.close(verbose=False)
        self.files.held.cleanup()


def check_host(host: str, password: str) -> None:
    """ValueError for a host that others reach, without a password, and for one that is not this machine's.

    Who may see a Space is the Hub's business.
    """
    if not is_loopback(host) and not password and "SPACE_ID" not in os.environ:
        raise ValueError(f"host {host} is open to others: give --password, or set JUSTIMAGE_PASSWORD")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.bind(address)
    except (OSError, UnicodeError):  # of names that cannot be encoded
        allowed = "localhost, one of this machine's own addresses, or 0.0.0.0 for all of them"
        raise ValueError(f"host {host} cannot be served from here; allowed: {allowed}") from None


def for_others(address: str, host: str) -> str:
    """Where others find a page that serves all addresses of this machine; nothing for one that serves a single one."""
    return f", for others http://{socket.gethostname()}:{urlsplit(address).port}/" if host in ("0.0.0.0", "::") else ""


def check_of(password: str) -> Any:
    """A check of the password, whatever the name; a wrong one is answered late."""

    async def check(name: str, given: str) -> bool:
        right = hmac.compare_digest(given.encode(), password.encode())
        if not right:
            await asyncio.sleep(WRONG_SECONDS)
        return right

    return check


def build(
    sources: Sequence[str | Path] = (), *, device: str | None = None, max_images: int = 16, home: str | Path | None = None
) -> Page:
    """Build the page of some models: runs, converted folders, .safetensors files, or addresses on the Hub.

    max_images: of one drawing. home: a folder whose runs are offered, too, and where the demo is trained; by default the
    current one where no sources are given. ValueError or OSError, in one line, for a model that cannot be read.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "100"  # its own statistics
    if not 1 <= max_images <= 64:
        raise ValueError(f"max-images is {max_images}; allowed: 1 to 64")
    found = Path(home) if home is not None else Path() if not sources else None
    models, files = Models(sources, checked_device(device), max_images, found), Downloads()
    for name in models.given:  # fail early, and have the first drawing soon
        generator = models.generator(name)
        generator.denoiser(generator.make_job().ema)
    try:
        import gradio as gr
    except ImportError as error:
        raise ValueError(f"a page needs more: {EXTRA}") from error
    demo = watch.Demo(found or Path())
    with gr.Blocks(title="justimage", analytics_enabled=False, delete_cache=(3600, 6 * 3600), fill_width=True) as blocks:
        fill(gr, blocks, models, files, demo)
    return Page(blocks, models, files, demo)


def fill(gr: Any, blocks: Any, models: Models, files: Downloads, demo: watch.Demo) -> None:
    """Put everything on the page."""
    names = models.names
    with gr.Row(elem_id="top"):
        gr.HTML("<h1>justimage</h1>", elem_id="title")
        model = gr.Dropdown(names, value=next(iter(names), None), label="Model", elem_id="model", scale=3, min_width=200)
        facts = gr.HTML("", elem_id="facts")
    nothing = gr.HTML(note("There is no model here yet: train the demo, under Watch."), elem_id="nothing", visible=not names)
    with gr.Tabs(selected="draw" if names or models.runs else "watch"):
        followers = []
        with gr.Tab("Draw", id="draw"):
            followers.append(draw.layout(models, files, model))
        with gr.Tab("Compare", id="compare"):
            followers.append(compare.layout(models, model))
        with gr.Tab("Explore", id="explore"):
            followers.append(explore.layout(models, model))
        with gr.Tab("Edit", id="edit"):
            followers.append(edit.layout(models, files, model))
        with gr.Tab("Watch", id="watch") as watching:
            refresh, inputs, outputs, options, train = watch.layout(models, demo)
    clock = gr.Timer(2, active=False)
    followed = [field for _, fields in followers for field in fields]

    def follow(name: Any) -> list[Any]:
        """Fit every tab to the chosen model."""
        with refusals():
            if name is None:
                return [gr.skip()] * (len(followed) + 1)
            return [about(models, name), *(value for function, _ in followers for value in function(name))]

    def arrive(name: Any) -> tuple[Any, Any]:
        """Offer the models that are there by now."""
        with refusals():
            names = models.names
            return gr.Dropdown(names, value=name if name in names else next(iter(names), None)), gr.HTML(visible=not names)

    model.change(follow, model, [facts, *followed], **QUIET)
    blocks.load(arrive, model, [model, nothing], **QUIET).then(follow, model, [facts, *followed], **QUIET)
    watching.select(refresh, inputs, outputs, **options).then(lambda: gr.Timer(active=True), None, clock, **QUIET)
    train.click(lambda: gr.Timer(active=True), None, clock, **QUIET)
    clock.tick(refresh, inputs, outputs, **options).then(arrive, model, [model, nothing], **QUIET)


def about(models: Models, name: str) -> str:
    """A model in a line."""
    recipe = models.generator(name).recipe
    a, (height, width) = recipe.model, recipe.model.size
    told = [f"{a.classes} classes"] if a.classes else []
    told += [what for what, there in (("words", a.text_length), ("numbers", a.vector)) if there]
    kind = "grey" if a.channels == 1 else "colour" if a.channels == 3 else f"{a.channels} channels"
    facts = [f"{width} x {height}, {kind}", *([", ".join(told)] if told else [])]
    if a.image_channels:
        untold = " (other tabs leave it out)" if a.classes else " only"
        facts.append(f"is told an image: Edit, or justimage sample --condition{untold}")
    return note("; ".join(facts if len(facts) > 1 else [*facts, "no condition"]))
