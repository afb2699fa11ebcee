"""`justimage doctor`: it finds what is there and what is not, in any environment, and never fails itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from justimage import cli, disk, machine
from justimage.cli import doctor
from justimage.machine import devices, packages, space, speed
from justimage.machine.finding import Finding

GB = 10**9
EXTRAS = [
    "torch>=2.11", "numpy>=2", 'matplotlib>=3.9; extra == "plots"', 'scikit-learn>=1.5; extra == "demo"',
    'gradio<7,>=6.16; extra == "web"', 'mkdocstrings[python]>=1; extra == "docs"',
    'justimage[demo,plots]; extra == "test"', 'pytest>=8; extra == "test"',
]  # fmt: skip
HERE = {
    "torch": "2.13.0+cpu",
    "numpy": "2.4.6",
    "matplotlib": "3.9.0",
    "scikit-learn": "1.4.2",
    "gradio": "7.0.0",
    "pytest": "9.2",
}


def found(probe: Callable[[], Iterable[Finding]]) -> dict[str, Finding]:
    """What a probe finds, by name; all of it is JSON."""
    findings = list(probe())
    assert json.loads(json.dumps([asdict(f) for f in findings]))
    return {finding.name: finding for finding in findings}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with packages, by version, that may be changed."""
    there = dict(HERE)

    def version(package: str) -> str:
        if package not in there:
            raise metadata.PackageNotFoundError(package)
        return there[package]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda package: EXTRAS)
    return there


def test_every_line_is_json_and_says_what_to_do_about_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["works"] is True and set(machine.SECTIONS) < set(report)
    lines = [line for section in machine.SECTIONS for line in report[section]]
    assert {line["state"] for line in lines} <= {"ok", "note", "missing"}
    assert all(line["advice"] for line in lines if line["state"] == "missing")
    assert {"Python", "PyTorch", "CPU", "precision", "C++ compiler", "memory", "cache"} <= {line["name"] for line in lines}


def test_a_probe_that_raises_becomes_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def some_probe() -> Iterable[Finding]:
        yield Finding("first", "ok", "found")
        raise SystemExit("a library\nthat exits")

    monkeypatch.setattr(machine, "SECTIONS", {"software": (some_probe, packages.python), "extras": ()})
    findings = [finding for _, finding in machine.examine()]
    assert [f.name for f in findings] == ["first", "some probe", "Python"]
    assert findings[1].state == "note" and "SystemExit: a library that exits" in findings[1].text
    assert doctor.main([]) == 0 and "some probe" in capsys.readouterr().out


def test_an_extra_is_there_or_too_old_or_too_new_or_missing(installed: dict[str, str]) -> None:
    lines = found(packages.extras)
    assert set(lines) == {"plots", "demo", "web", "docs", "test"}
    assert lines["plots"].state == "ok" and lines["plots"].facts == {"matplotlib": "3.9.0"}
    assert lines["demo"].text == "needs scikit-learn 1.4.2, not >=1.5"
    assert lines["demo"].advice == "pip install --upgrade 'justimage[demo]'"
    assert lines["web"].text == "needs gradio 7.0.0, not <7,>=6.16"
    assert lines["docs"].advice == "pip install 'justimage[docs]'" and lines["docs"].facts == {"mkdocstrings": None}
    assert lines["test"].state == "ok" and set(lines["test"].facts) == {"pytest"}


def test_extras_are_those_that_the_package_declares() -> None:
    """Whatever version of it is installed here: its metadata are read, and no line of them is left out."""
    declared = [line for line in metadata.requires("justimage") or [] if not line.startswith("justimage[")]
    assert len(packages.requirements()) == len(declared)
    assert {r.extra for r in packages.requirements()} == {"", *(metadata.metadata("justimage").get_all("Provides-Extra") or [])}


@pytest.mark.parametrize(
    ("versions", "version", "allowed"),
    [
        (">=1.5", "1.10.0", True), (">=1.5", "1.4.9", False), ("<7,>=6.16", "6.31.0", True), ("<7,>=6.16", "7.0.0", False),
        (">=2", "2.0.0rc1", True), (">=2.11", "2.11.0+cpu", True), ("", "0", True),
        (">=1.6,<2", "2", False), ("==1.0", "1", True),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(versions: str, version: str, allowed: bool) -> None:
    assert packages.allows(versions, version) is allowed


def test_what_everything_needs_is_compared_too(installed: dict[str, str]) -> None:
    assert found(packages.required)["justimage"].state == "ok"
    installed["torch"] = "2.9.1"
    del installed["numpy"]
    line = found(packages.required)["justimage"]
    assert line.state == "missing" and line.text.endswith("needs numpy; torch 2.9.1, not >=2.11")


def test_without_a_compiler_its_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    line = found(speed.compiler)["C++ compiler"]
    assert line.state == "missing" and line.advice == "apt-get install g++"
    monkeypatch.setenv("CXX", "nowhere++")
    assert "CXX is nowhere++" in found(speed.compiler)["C++ compiler"].text
    (tmp_path / "g++").write_text("#!/bin/sh\necho 'g++ (Test) 1.2'\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.delenv("CXX")
    line = found(speed.compiler)["C++ compiler"]
    assert line.state == "ok" and line.text == f"{tmp_path / 'g++'}, g++ (Test) 1.2"
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert "-dev" in found(speed.compiler)["Python.h"].advice


def fake_cuda(monkeypatch: pytest.MonkeyPatch, free: int = 70 * GB, capability: tuple[int, int] = (9, 0)) -> None:
    """PyTorch as it is beside a GPU, as far as it is asked."""
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "mem_get_info": (free, 80 * GB), "get_device_name": "H100",
        "get_device_capability": capability, "get_arch_list": ["sm_75", "sm_90a", "compute_90"], "is_bf16_supported": True,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(devices, "driver", lambda: "580.1")


def test_a_gpu_is_described_and_what_keeps_it_from_working_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    line = found(devices.gpus)["cuda:0"]
    assert line.state == "ok" and line.text == "H100, 70.0 of 80.0 GB free, compute capability 9.0, driver 580.1"
    assert line.facts["memory"] == 80 * GB
    fake_cuda(monkeypatch, free=10 * GB)
    assert found(devices.gpus)["cuda:0"].state == "note"
    fake_cuda(monkeypatch, capability=(5, 2))
    assert found(devices.gpus)["cuda:0"].state == "missing"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (_ for _ in ()).throw(RuntimeError("device lost")))
    assert "device lost" in found(devices.gpus)["cuda:0"].text


@pytest.mark.parametrize("driver", ["", "580.1"])
def test_no_gpu_and_a_gpu_that_this_pytorch_is_not_built_for_are_two_things(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "driver", lambda: driver)
    line = found(devices.gpus)["GPU"]
    assert (line.state, bool(line.advice)) == (("missing", True) if driver else ("note", False))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert ("unset CUDA_VISIBLE_DEVICES" in found(devices.gpus)["GPU"].advice) is bool(driver)


def test_a_container_with_fewer_cores_than_threads_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(devices, "cores_allowed", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    line = found(devices.processor)["CPU"]
    assert line.state == "note" and "of which 1.5 may be used" in line.text and "OMP_NUM_THREADS=1" in line.advice
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert found(devices.processor)["CPU"].state == "ok"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert found(devices.processor)["CPU"].advice == "export OMP_NUM_THREADS=8"


def test_little_room_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=GB // 10))
    monkeypatch.setattr(space, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(space, "SHARED", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:  1000000 kB\n")
    memory, cache, shared = (found(p) for p in (space.memory, space.cache, space.shared_memory))
    assert memory["memory"].state == "note" and memory["memory"].facts["free"] == 1_024_000_000
    assert cache["cache"].state == "note" and "JUSTIMAGE_CACHE" in cache["cache"].advice
    assert shared["shared memory"].state == "note" and "--shm-size" in shared["shared memory"].advice

    def refuse(place: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(disk, "check_writable", refuse)
    assert found(space.cache)["cache"].facts["writable"] is False
    assert not (tmp_path / "not").exists()


def test_what_was_measured_until_its_time_was_up_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a process that says one speed and then hangs, and one that fails."""
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\necho '{\"fp32\": 10.0}'\nsleep 600 & wait\n")
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 3\n")
    for script in hangs, fails:
        script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hangs))
    speeds, cut_short = speed.speeds_within(1.0)
    assert speeds == {"fp32": 10.0} and "stopped after 1 s" in cut_short
    monkeypatch.setattr(sys, "executable", str(fails))
    assert speed.speeds_within(30.0) == ({}, "it ended with code 3: no such module")
    assert found(speed.training_speed)["training"].state == "note"


def broken(package: str, message: str, place: Path) -> dict[str, str]:
    """An environment in which a package cannot be imported."""
    (place / package).mkdir()
    (place / package / "__init__.py").write_text(f"raise {message}\n")
    source = str(Path(cli.__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(place), source])}


def test_without_pytorch_the_doctor_still_answers_and_other_commands_send_there(tmp_path: Path) -> None:
    environment = broken("torch", "ImportError('libcudart.so.12: cannot open shared object file')", tmp_path)
    command = [sys.executable, "-m", "justimage"]
    done = subprocess.run([*command, "doctor", "--json"], env=environment, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == doctor.FAULT and report["works"] is False, done.stderr
    line = next(line for line in report["software"] if line["name"] == "PyTorch")
    assert line["state"] == "missing" and "libcudart.so.12" in line["text"]
    done = subprocess.run([*command, "info"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "justimage doctor" in done.stderr


@pytest.mark.parametrize(("error", "around"), [("operator torchvision::nms does not exist", True), ("something else", False)])
def test_a_torchvision_of_another_build_is_noted_with_its_remedy(error: str, around: bool, tmp_path: Path) -> None:
    environment = broken("torchvision", f"RuntimeError('{error}')", tmp_path)
    if around:  # importable once its operators are declared
        code = "import torch\ntry:\n    torch.ops.torchvision.nms\nexcept AttributeError:\n    "
        (tmp_path / "torchvision" / "__init__.py").write_text(f"{code}raise RuntimeError('{error}')\n")
    code = (
        "from justimage.machine import packages\npackages.version_of = lambda package: '0.28.0'\n"
        "[line] = packages.torchvision()\nprint(line.state, line.text, line.advice)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note 0.28.0") and "pip uninstall torchvision" in done.stdout
    assert ("works around it" in done.stdout) is around and error in done.stdout


@pytest.mark.full
def test_speeds_are_measured_here() -> None:
    """Without a limit of time that matters: in each way to compute that the device has."""
    speeds, cut_short = speed.speeds_within(250)
    assert not cut_short and {"fp32", "bf16"} <= speeds.keys() and min(speeds.values()) > 0
