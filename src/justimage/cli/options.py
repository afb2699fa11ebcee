"""Options from dataclasses, by tyro, and the checks that commands share."""

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import tyro

from justimage.cli import fail
from justimage.distributed import find_device

T = TypeVar("T")


def parse(kind: type[T], words: Sequence[str], command: str, description: str, **options: Any) -> T:
    """`words` as a value of a dataclass (options: tyro's, as `default`); a mistake in them is one line and exit code 2."""
    aside = io.StringIO()
    config = (tyro.conf.OmitArgPrefixes,)
    try:
        with contextlib.redirect_stderr(aside):
            return tyro.cli(
                kind, args=list(words), prog=f"justimage {command}", description=description, config=config, **options
            )  # fmt: skip
    except SystemExit as end:
        if end.code:
            fail(tyro_message(aside.getvalue()))
        raise


def tyro_message(text: str) -> str:
    """What a box of tyro's says, in one line: its first paragraph, and the nearest option where it suggests one."""
    lines = [line.strip("│╭╮╰╯ ") for line in text.splitlines()]
    end = next((i for i, line in enumerate(lines) if re.fullmatch("─+", line)), len(lines))
    message = " ".join(" ".join(lines[1:end]).split())
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(lines))
    message = re.sub(r"\[/?bold\]| ?Got errors:.*", "", message)
    message = re.sub(r"^Error parsing (\w+\.)*(recipe|network|process|training|sampling|upkeep): ", "", message)
    return message + (f"; perhaps {near[1]}" if near else "")


def peek_option(words: Sequence[str], option: str, most: int = 1) -> list[str]:
    """Up to `most` values of an option among the words of a command, before they are parsed."""
    for i, word in enumerate(words):
        before, sign, after = word.partition("=")
        if before.replace("_", "-") == option:
            values = [after] if sign else list(itertools.takewhile(lambda w: not w.startswith("--"), words[i + 1 :]))
            return values[:most]
    return []


def checked_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; ValueError where it cannot be used."""
    try:
        device = find_device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"device {name!r} is not to be had here; there are {', '.join(there)}") from error
    return device
