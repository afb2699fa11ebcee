"""Options from dataclasses, by tyro, and the checks that commands share."""

import contextlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from justimage.cli import fail
from justimage.run import default_device

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
            fail(unboxed(aside.getvalue()))
        raise


def unboxed(text: str) -> str:
    """What a box of tyro's says, in one line: its first paragraph, and the nearest option where it suggests one."""
    lines = [line.strip("│╭╮╰╯ ") for line in text.splitlines()]
    end = next((i for i, line in enumerate(lines) if re.fullmatch("─+", line)), len(lines))
    message = " ".join(" ".join(lines[1:end]).split())
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(lines))
    message = re.sub(r"^Error parsing (\w+\.)*(recipe|network|process|training|sampling|upkeep): ", "", message)
    return message + (f"; perhaps {near[1]}" if near else "")


def given(words: Sequence[str], option: str) -> str | None:
    """The value of an option among the words of a command, before they are parsed."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return None


def checked_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; ValueError where it cannot be used."""
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"device {name!r} is not to be had here; there are {', '.join(there)}") from error
    return device


def writable(place: Path) -> None:
    """OSError now, rather than after the work, where a result could not be written."""
    parent = next(p for p in place.absolute().parents if p.exists())
    if place.is_dir() and any(place.iterdir()):
        raise FileExistsError(f"{place} exists and is not empty; give a new one")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PermissionError(f"{place} cannot be written: no permission in {parent}")
