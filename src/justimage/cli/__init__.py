"""The command line: one file a command, imported when it is called, so that help is instant."""

import difflib
import os
import sys
from importlib import import_module
from typing import NoReturn

HELP = """usage: justimage COMMAND [options]

Pixel-space diffusion with plain Transformers: the network predicts the clean image.

  demo      learn handwritten digits from scratch on the CPU, in minutes, and draw them
  prepare   decode and crop a set of images once, into a store that trains faster
  train     train a model on your own images, or go on with a training
  sample    draw images from a trained model
  info      the networks: parameters, multiply-adds, tokens, memory to train
  convert   the authors' checkpoints into ours, and back

examples:
  justimage demo
  justimage train --preset folder-64 --data photos/ --out runs/photos
  justimage prepare imagenet/train stores/imagenet-256 --image-size 256
  justimage sample --from runs/photos --count 16 --out grid.png
  justimage COMMAND --help        the options of a command, with examples

A mistake ends with one line and exit code 2; JUSTIMAGE_TRACEBACK=1 shows where it was found."""

COMMANDS = ("demo", "prepare", "train", "sample", "info", "convert")


def main() -> None:
    """The console script. Exit codes: 0 done, 2 a mistake, 75 stopped on request and saved, 130 interrupted."""
    words = sys.argv[1:]
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
        sys.exit(import_module(f"justimage.cli.{words[0]}").main(words[1:]))
    except (ValueError, OSError) as error:
        if os.environ.get("JUSTIMAGE_TRACEBACK"):
            raise
        fail(in_one_line(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def fail(message: str) -> NoReturn:
    print(f"justimage: error: {message}", file=sys.stderr)
    sys.exit(2)
