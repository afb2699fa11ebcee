"""A look at this machine, for `justimage doctor`: software, devices, speed, space and extras, found out by small probes.

A probe yields findings and changes nothing. One that raises becomes a finding that says so: a look never fails. Nothing here
imports PyTorch at the top, as a PyTorch that cannot be imported is one of the things to be found.
"""

from collections.abc import Callable, Iterable, Iterator

from justimage.machine import devices, packages, space, speed
from justimage.machine.finding import Finding, reason

Probe = Callable[[], Iterable[Finding]]

NEEDED = "software"
"""The section without which nothing works."""
SECTIONS: dict[str, tuple[Probe, ...]] = {
    NEEDED: (packages.python, packages.required, packages.pytorch, packages.torchvision),
    "devices": (devices.gpus, devices.processor, devices.processes),
    "speed": (speed.precision, speed.compiler, speed.training_speed),
    "space": (space.memory, space.cache, space.shared_memory, space.file_limit),
    "extras": (packages.extras,),
}
"""The probes in the order of the report."""
SLOW = (speed.training_speed,)
"""Probes that a quick look leaves out."""


def examine(quick: bool = False) -> Iterator[tuple[str, Finding]]:
    """Every finding with its section, as it is found. quick: leave out what takes seconds."""
    for section, probes in SECTIONS.items():
        for probe in probes:
            if quick and probe in SLOW:
                continue
            try:
                for finding in probe():
                    yield section, finding
            except GeneratorExit:
                raise
            except BaseException as error:  # even SystemExit, of a library that is imported
                if isinstance(error, KeyboardInterrupt):
                    raise
                yield section, Finding(probe.__name__.replace("_", " "), "note", f"could not be found out: {reason(error)}")
