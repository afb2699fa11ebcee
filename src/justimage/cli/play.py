"""justimage play."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from justimage.cli.options import parse

DESCRIPTION = """Open a page in the browser: draw, compare, explore and edit with trained models, and watch a training.

Without --from it offers the runs in runs/ and of demos, and to train the demo. Only this machine reaches it, unless --host
says otherwise, which needs a password (docs/play.md).

examples:
  justimage play
  justimage play --from runs/photos
  justimage play --from runs/photos hf://me/photos --max-images 8
  JUSTIMAGE_PASSWORD=... justimage play --from runs/photos --host 0.0.0.0 --port 7860"""


@dataclass(frozen=True)
class PlayOptions:
    source: Annotated[tuple[str, ...], tyro.conf.arg(name="from")] = ()
    """runs, converted folders, .safetensors files, or hf://name/of-it [those found here]"""
    host: str = "127.0.0.1"
    """the address to serve; any but this machine's own needs a password"""
    port: int | None = None
    """[7860, or the next that is free]"""
    password: str = ""
    """asked of every visitor [$JUSTIMAGE_PASSWORD]; on the command line other users of this machine may read it"""
    max_images: int = 16
    """of one drawing"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [cuda if there is one]"""
    open: bool = False
    """open a browser, too"""


def main(words: Sequence[str]) -> int:
    o = parse(PlayOptions, words, "play", DESCRIPTION)
    from justimage.web import build, check_host

    if o.port is not None and not 1 <= o.port <= 65535:
        raise ValueError(f"port is {o.port}; allowed: 1 to 65535")
    password = o.password or os.environ.get("JUSTIMAGE_PASSWORD", "")
    check_host(o.host, password)
    page = build(o.source, device=o.device, max_images=o.max_images)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that its files go, and the demo saves
    try:
        page.launch(o.host, o.port, password, open_browser=o.open)
    finally:
        page.close()
    return 0
