"""Options of commands, parsed into dataclasses by tyro, and checks that commands share."""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from justimage.cli import fail

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], command: str, description: str, **options: Any) -> T:
    """Parse arguments into a dataclass; a mistake is one line and exit code 2. options: tyro's, such as `default`."""
    with one_line_errors():
        return tyro.cli(kind, args=list(argv), prog=f"justimage {command}", description=description, **options)


def parse_known(kind: type[T], argv: Sequence[str]) -> T:
    """Parse only the arguments that a dataclass has a field for: those on which the defaults of the others depend."""
    with one_line_errors():
        return tyro.cli(kind, args=list(argv), return_unknown_args=True, add_help=False)[0]


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Within the block, replace the box in which tyro reports a mistake by one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as end:
        if end.code:
            fail(tyro_message(box.getvalue()))
        raise


def tyro_message(box: str) -> str:
    """The message in a box of tyro's, in one line: its first paragraph, and the nearest option where it suggests one."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    end = next((i for i, line in enumerate(lines) if re.fullmatch("─+", line)), len(lines))
    message = " ".join(" ".join(lines[1:end]).split())
    near = re.search(r"Perhaps you meant:\s*(--[\w.-]+)", " ".join(lines))
    message = re.sub(r"\[/?bold\]| ?Got errors:.*", "", message)
    message = re.sub(r"^Error parsing (?=[a-z])", "", message)  # the section that refuses its values
    return message + (f"; perhaps {near[1]}" if near else "")


def checked_device(name: str | None) -> "torch.device":
    """The device of that name, or the best available; ValueError where it cannot be used."""
    import torch  # here, as `doctor` must be able to say that it is missing

    from justimage.distributed import find_device

    try:
        device = find_device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        mps = ["mps"] if torch.backends.mps.is_available() else []
        available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *mps]
        raise ValueError(f"device {name!r} is not available here; allowed: {', '.join(available)}") from error
    return device
