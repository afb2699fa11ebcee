"""The command line: one file a command, imported when it is called, so that help is instant."""

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from justimage.cli.pipe import ReaderGone, closed_pipe_guard

HELP = """usage: justimage COMMAND [options]

Pixel-space diffusion with plain Transformers: the network predicts the clean image.

  demo      learn handwritten digits from scratch on the CPU, in minutes, and draw them
  prepare   decode and crop a set of images once, into a store that trains faster
  train     train a model on your own images, or go on with a training
  sample    draw images from a trained model
  evaluate  score a model's images against real ones: FID, IS, KID, precision, recall
  search    find the best guidance and the best average of the weights
  reproduce the paper's tables and figures, each by one command, beside the paper's numbers
  features  a classifier of your own data as the space to score in; statistics of real images
  info      the networks: parameters, multiply-adds, tokens, memory to train
  plan      what a training takes on given GPUs: bytes a GPU, images/s, days
  convert   the authors' checkpoints into ours, and back

examples:
  justimage demo
  justimage train --preset folder-64 --data photos/ --out runs/photos
  justimage prepare imagenet/train stores/imagenet-256 --for jit-b16-256
  justimage sample --from runs/photos --count 16 --out grid.png
  justimage COMMAND --help        the options of a command, with examples

A mistake ends with one line and exit code 2; JUSTIMAGE_TRACEBACK=1 shows where it was found."""

COMMANDS = ("demo", "prepare", "train", "sample", "evaluate", "search", "reproduce", "features", "info", "plan", "convert")
UNATTENDED = ("demo", "train", "reproduce", "features")
"""Commands that go on, unheard, when whoever read what they say is gone: `justimage train | tee log` outlives its tee."""

FAILED, DISK, STOPPED, UNUSABLE, UNREAD = 70, 74, 75, 78, 141
FULL_OR_BROKEN = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


def main() -> None:
    """The console script. Exit codes: 0 done, 2 a mistake in what was asked for, 70 hung, not finite, or failed within,
    74 a disk that does not take what is written, 75 stopped on request (start it again), 78 nothing usable there, 130
    interrupted, 141 nobody reads what is printed any more."""
    words = sys.argv[1:]
    goes_on = is_distributed() or (bool(words) and words[0] in UNATTENDED)
    try:
        with closed_pipe_guard(goes_on):
            run(words)
    except ReaderGone:
        sys.exit(UNREAD)


def run(words: list[str]) -> None:
    """Do what the words of a command line say."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    if words[0] == "--version":
        from justimage import __version__

        print(__version__)
        return
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        fail(f"no command is called {words[0]!r}; " + (f"perhaps {near[0]}" if near else f"there are {', '.join(COMMANDS)}"))
    try:
        with show_loading():
            command = import_module(f"justimage.cli.{words[0]}")
        exit_with(command.main(words[1:]))
    except (ValueError, OSError, RuntimeError) as error:
        code = exit_code(error)
        if os.environ.get("JUSTIMAGE_TRACEBACK") or code is None:
            traceback.print_exc()
        else:
            print(f"justimage: error: {one_line(error)}", file=sys.stderr)
        exit_with(FAILED if code is None else code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        exit_with(130)


@contextmanager
def show_loading() -> Iterator[None]:
    """Say on a terminal that the command's modules are being read: PyTorch takes seconds, on a slow disk many."""
    shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    if shown:
        print("loading PyTorch ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def exit_code(error: Exception) -> int | None:
    """The exit code that an error stands for; None for one that nobody foresaw."""
    from justimage.distributed import RemoteError

    codes = {"NotSaved": DISK, "NotFinite": FAILED, "Unusable": UNUSABLE, "Damaged": UNUSABLE, "Stopped": stopped_exit_code()}
    kind = error.kind if isinstance(error, RemoteError) else type(error).__name__
    if isinstance(error, OSError) and error.errno in FULL_OR_BROKEN:
        return DISK
    if kind in codes:
        return codes[kind]
    if isinstance(error, ValueError | OSError):
        return 2
    return FAILED if is_distributed() else None  # another process is gone


def stopped_exit_code() -> int:
    """75, to be started again. Not while torchrun would do so itself, at once: it starts again what is not 0."""
    from justimage.distributed import restarts_left

    return 0 if restarts_left() else STOPPED


def exit_with(code: int) -> NoReturn:
    """Exit. One of several processes does so at once: it neither waits for the others nor takes down the threads that talked
    to them, in which C++ may abort (code -6, now and then) when all is done, so that torchrun does it again."""
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_distributed() -> bool:
    """Whether this is one of several processes, by torchrun's environment."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def one_line(error: Exception) -> str:
    """What is wrong; a name in it that comes from a file gives no commands to the terminal."""
    from justimage.disk import printable

    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2000)
    return printable(" ".join(str(error).split()), 2000)


def fail(message: str) -> NoReturn:
    print(f"justimage: error: {message}", file=sys.stderr)
    sys.exit(2)
