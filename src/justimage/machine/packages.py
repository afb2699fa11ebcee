"""Python, PyTorch, the packages that everything needs and those of the extras, against the versions that are asked for."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from justimage.machine.finding import Finding, reason, shown

OLDEST_PYTHON = 3, 11


class Requirement(NamedTuple):
    """A package, its allowed versions such as ">=1.5,<2", and the extra that asks for it, "" for none."""

    package: str
    versions: str
    extra: str


REQUIREMENT = re.compile(
    r"(?P<package>[\w.-]+)(\[(?P<extras>[^\]]*)\])?\s*(?P<versions>[^;]*?)\s*(;.*extra == ['\"](?P<extra>[\w-]+)['\"].*)?"
)


def requirements() -> list[Requirement]:
    """The packages that the installed justimage asks for; an extra that names others (justimage[demo]) is left to those."""
    found = (REQUIREMENT.fullmatch(line) for line in metadata.requires("justimage") or [])
    lines = [Requirement(m["package"], m["versions"].strip("() "), m["extra"] or "") for m in found if m]
    return [line for line in lines if line.package != "justimage"]


def version_of(package: str) -> str:
    """The installed version; empty where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version as numbers, without zeros at its end: 2.13.0+cpu is (2, 13)."""
    release = re.match(r"\d+(\.\d+)*", version)
    found = [int(n) for n in release[0].split(".")] if release else []
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def allows(versions: str, version: str) -> bool:
    """Whether a version is one of ">=1.5,<2"."""
    compare = {
        ">=": tuple.__ge__,
        "<=": tuple.__le__,
        "<": tuple.__lt__,
        ">": tuple.__gt__,
        "==": tuple.__eq__,
        "!=": tuple.__ne__,
    }
    parts = re.findall(r"(>=|<=|==|!=|<|>)\s*([\w.+]+)", versions)
    return all(compare[sign](numbers(version), numbers(limit)) for sign, limit in parts)


def lacking(wanted: list[Requirement]) -> list[str]:
    """The packages that are absent or of another version than wanted, each in some words."""
    found = {r: version_of(r.package) for r in wanted}
    absent = [r.package for r, version in found.items() if not version]
    return absent + [f"{r.package} {v}, not {r.versions}" for r, v in found.items() if v and not allows(r.versions, v)]


def python() -> Iterator[Finding]:
    version, system = platform.python_version(), platform.platform()
    facts = {"python": version, "system": system, "executable": shown(sys.executable)}
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(
            "Python", "missing", f"{version} is too old", "install Python {}.{} or newer".format(*OLDEST_PYTHON), facts
        )
    else:
        yield Finding("Python", "ok", f"{version} on {system}", facts=facts)


def required() -> Iterator[Finding]:
    """The core's own requirements, by their metadata."""
    from justimage import __version__

    try:
        wanted = [r for r in requirements() if not r.extra]
    except metadata.PackageNotFoundError:
        where = "runs from its source, and is not installed: what it needs cannot be compared with what is here"
        yield Finding("justimage", "note", f"{__version__} {where}", "pip install -e .", {"justimage": __version__})
        return
    facts = {"justimage": __version__, **{r.package: version_of(r.package) for r in wanted}}
    if bad := lacking(wanted):
        yield Finding("justimage", "missing", f"{__version__} needs {'; '.join(bad)}", "pip install --upgrade justimage", facts)
    else:
        names = ", ".join(f"{r.package} {version_of(r.package)}" for r in wanted)
        yield Finding("justimage", "ok", f"{__version__} with {names}", facts=facts)


def pytorch() -> Iterator[Finding]:
    """Whether PyTorch can be imported, and what it is built for."""
    try:
        import torch

        torch.zeros(1).add_(1)
    except Exception as error:
        yield Finding("PyTorch", "missing", f"cannot be used: {reason(error)}", "pip install --force-reinstall torch")
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPUs"
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    yield Finding("PyTorch", "ok", f"{torch.__version__}, built for {built}", facts=facts)


def torchvision() -> Iterator[Finding]:
    """Whether torchvision is of the same build as PyTorch: where it is not, what imports it (transformers, torch-fidelity,
    diffusers) fails, except through `operators.declare_operators`."""
    version = version_of("torchvision")
    if not version:
        yield Finding("torchvision", "ok", "is not installed, nor needed", facts={"torchvision": None})
        return
    facts = {"torchvision": version}
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        from justimage.operators import declare_operators

        advice = "install torch and torchvision from the same index, or: pip uninstall torchvision"
        try:
            declare_operators()
            around = "is of another build than PyTorch; justimage works around it, other programs fail"
            yield Finding("torchvision", "note", f"{version} {around} ({reason(error)})", advice, facts)
        except Exception:
            yield Finding("torchvision", "note", f"{version} cannot be imported ({reason(error)})", advice, facts)
        return
    yield Finding("torchvision", "ok", version, facts=facts)


CONTRIBUTORS = "test", "docs"
"""Extras that nobody misses who only uses the package."""


def extras() -> Iterator[Finding]:
    """Each extra of the package: whether all that it brings is there, in versions that go with it."""
    found: dict[str, list[Requirement]] = {}
    for r in requirements():
        if r.extra:
            found.setdefault(r.extra, []).append(r)
    for extra, wanted in found.items():
        facts = {r.package: version_of(r.package) or None for r in wanted}
        if bad := lacking(wanted):
            old = any(version_of(r.package) and not allows(r.versions, version_of(r.package)) for r in wanted)
            command = f"pip install {'--upgrade ' if old else ''}'justimage[{extra}]'"
            state = "note" if extra in CONTRIBUTORS else "missing"
            yield Finding(extra, state, f"needs {'; '.join(bad)}", command, facts)
        else:
            yield Finding(extra, "ok", ", ".join(f"{name} {version}" for name, version in facts.items()), facts=facts)
