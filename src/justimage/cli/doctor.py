"""justimage doctor."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from justimage import __version__, machine
from justimage.cli.options import parse
from justimage.machine.finding import Finding

DESCRIPTION = """Look at this machine: what it has, what will be fast, what is missing, and the command for it.

examples:
  justimage doctor
  justimage doctor --quick          without measuring speed, which takes up to ten seconds
  justimage doctor --json           the same for programs, and for a report of a fault

Every line is ok, a note (slower or smaller than it could be) or missing (with what to do). Missing extras are no fault: each is
for some commands only. The exit code is 0 unless nothing can work here."""

COLOURS = {"ok": "green", "note": "yellow", "missing": "red"}
FAULT = 1
"""Exit code where justimage cannot work at all."""


@dataclass(frozen=True)
class DoctorOptions:
    quick: bool = False
    """leave out the measurement of speed"""
    json: bool = False
    """print what was found as JSON, sizes in bytes"""


def main(words: Sequence[str]) -> int:
    o = parse(DoctorOptions, words, "doctor", DESCRIPTION)
    found: dict[str, list[Finding]] = {section: [] for section in machine.SECTIONS}
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for section, finding in machine.examine(o.quick):
        if not o.json:
            print_finding(console, section if not found[section] else "", finding)
        found[section].append(finding)
    works = not any(finding.state == "missing" for finding in found[machine.NEEDED])
    if o.json:
        report = {section: [asdict(finding) for finding in findings] for section, findings in found.items()}
        print(json.dumps({"justimage": __version__, "works": works, **report}, indent=1))
    else:
        console.print()
        console.print(conclusion(works, [finding for findings in found.values() for finding in findings]))
    return 0 if works else FAULT


def print_finding(console: Console, heading: str, finding: Finding) -> None:
    """Print a finding as soon as it is there, below the heading of its section."""
    if heading:
        console.print(Text(heading, "bold"))
    line = Table.grid(padding=(0, 1))
    line.add_column(width=8)
    line.add_column(width=14)
    line.add_column()
    line.add_row(Text(f" {finding.state}", COLOURS[finding.state]), finding.name, Text(finding.text))
    if finding.advice:
        line.add_row("", "", Text(f"-> {finding.advice}", "cyan"))
    console.print(line)


def conclusion(works: bool, found: Sequence[Finding]) -> str:
    """The end of the report, in a line."""
    if not works:
        return "justimage cannot work here: see what is missing under software"
    counts = [
        f"{sum(f.state == state for f in found)} {words}" for state, words in (("note", "to note"), ("missing", "missing"))
    ]
    return f"justimage works here; {', '.join(counts)}. Try: justimage demo"
