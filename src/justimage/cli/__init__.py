"""The command line: one module per command, imported only when it is called, so that help is instant."""

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from justimage.cli.pipe import ReaderGone, closed_pipe_guard

HELP = """usage: justimage COMMAND [options]

Pixel-space diffusion with plain Transformers: the network predicts the clean image.

  demo           learn handwritten digits from scratch on a CPU, in minutes, and sample them
  prepare        decode and crop a set of images once, into a store that trains faster
  train          train a model on your images, or resume a training
  sample         generate images with a trained model
  edit           vary, fill, enlarge, colour or sharpen a photograph with a trained model
  play           a page in the browser to draw, compare, explore and edit with, and to watch a training
  evaluate       score generated images against real ones: FID, IS, KID, precision, recall
  search         find the best guidance and the best average of the weights
  reproduce      each table and figure of the paper by one command, beside the paper's numbers
  feature-space  a classifier of your data as the space to score in; statistics of real images
  info           the networks: parameters, multiply-adds, tokens, memory to train
  plan           what a training takes on given GPUs: bytes per GPU, images/s, days
  convert        the authors' checkpoints into this format, and back; a model as ONNX or .pt2
  push           upload a model to the Hub of Hugging Face, from where hf://name/of-it is used
  doctor         this machine: what it has, what will be fast, what is missing and the command for it

examples:
  justimage demo
  justimage train --preset folder-64 --data photos/ --out runs/photos
  justimage prepare imagenet/train stores/imagenet-256 --for jit-b16-256
  justimage sample --from runs/photos --count 16 --out grid.png
  justimage COMMAND --help        the options of a command, with examples

A mistake is reported in one line, with exit code 2 (docs/reliability.md has the others); JUSTIMAGE_TRACEBACK=1 adds the
traceback."""

COMMANDS = (
    "demo", "prepare", "train", "sample", "edit", "play", "evaluate", "search", "reproduce", "feature-space", "info", "plan",
    "convert", "push", "doctor",
)  # fmt: skip
UNATTENDED = ("demo", "train", "play", "reproduce", "feature-space")
"""Commands that continue when the reader of their output is gone: `justimage train | tee log` outlives its tee."""

MISTAKE, FAILED, DISK, STOPPED, INTERRUPTED, READER_GONE = 2, 70, 74, 75, 130, 141
DISK_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


def main() -> None:
    """Run the command in sys.argv: the console script. Exit codes: 0 done; 1 of doctor, nothing can work; 2 a mistake of the
    user; 70 hung, a loss that is not finite, or a failure of another process; 74 a disk that cannot be written; 75 stopped on
    request (start it again); 78 no usable checkpoint; 130 interrupted; 141 the reader of the output is gone."""
    argv = sys.argv[1:]
    unattended = is_distributed() or (bool(argv) and argv[0] in UNATTENDED)
    try:
        with closed_pipe_guard(unattended):
            run(argv)
    except ReaderGone:
        sys.exit(READER_GONE)


def run(argv: list[str]) -> None:
    """Run the command that the arguments name, and exit with its code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    if argv[0] == "--version":
        from justimage import __version__

        print(__version__)
        return
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        fail(f"no command is called {argv[0]!r}; " + (f"perhaps {near[0]}" if near else f"there are {', '.join(COMMANDS)}"))
    try:
        exit_with(load_command(argv[0]).main(argv[1:]))
    except (ValueError, OSError, RuntimeError) as error:
        code = exit_code(error)
        if os.environ.get("JUSTIMAGE_TRACEBACK") or code is None:
            traceback.print_exc()
        else:
            say_error(one_line(error))
        exit_with(FAILED if code is None else code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        exit_with(INTERRUPTED)


def load_command(name: str) -> Any:
    """The module of a command."""
    try:
        with show_loading():
            return import_module(f"justimage.cli.{name.replace('-', '_')}")
    except ImportError as error:  # of PyTorch, or of what else everything needs
        fail(f"{one_line(error)}; justimage doctor says what is missing here")


@contextmanager
def show_loading() -> Iterator[None]:
    """Show on a terminal that the command's modules are being imported: PyTorch takes seconds, on a slow disk many."""
    shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    if shown:
        print("loading PyTorch ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error: the class's own (`exit_code`), else by its kind; None for an unforeseen one."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return DISK
    code = getattr(error, "exit_code", None)
    if code is None and isinstance(error, ValueError | OSError):
        return MISTAKE
    return FAILED if code is None and is_distributed() else code  # a RuntimeError there: another process is gone


def exit_with(code: int) -> NoReturn:
    """Exit. A stop on request is no failure to torchrun, which would restart at once whatever does not return 0.

    One of several processes exits without cleaning up: it neither waits for the others nor ends the threads that talked to
    them, in which C++ may abort (code -6, now and then) when all is done, so that torchrun would restart it.
    """
    if code == STOPPED:
        from justimage.distributed import restarts_left

        code = 0 if restarts_left() else STOPPED
    if is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_distributed() -> bool:
    """Whether this is one of several processes, by torchrun's environment."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def one_line(error: Exception) -> str:
    """An error's message in one line; names in it that come from a file cannot control the terminal."""
    from justimage.disk import printable

    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2000)
    return printable(" ".join(str(error).split()), 2000)


def say_error(message: str) -> None:
    """One line on standard error in one write, as several processes write there."""
    print(f"justimage: error: {message}\n", end="", file=sys.stderr)


def fail(message: str) -> NoReturn:
    say_error(message)
    sys.exit(MISTAKE)
