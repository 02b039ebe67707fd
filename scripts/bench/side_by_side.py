"""Shared code of the benches: each side of a case in its own process, medians, one table and one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Sides = dict[str, list[dict[str, Any]]]
"""What the rounds found, under "mmcl" and, where there is another toolkit, "peer"."""

# Runs of more than this many seconds are not repeated: noise is small beside them, and patience ends.
LONG = 20.0


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        name: as it is printed, and given to `--cases`.
        units: what is measured, with its unit.
        peer: the other toolkit; empty if there is none.
        skipped: why the other toolkit is left out; empty if it is not.
    """

    name: str
    units: dict[str, str]
    peer: str = ""
    skipped: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="processes per case and side")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--side", choices=("mmcl", "peer"), help=argparse.SUPPRESS)


def compare(
    cases: Iterable[Case],
    arguments: argparse.Namespace,
    flags: Sequence[str] = (),
    check: Callable[[str, Sides], None] = lambda case, sides: None,
) -> list[Row]:
    """Prints the table while it grows.

    Args:
        cases: what is measured.
        arguments: those of `add_arguments`.
        flags: further flags of the measuring process.
        check: raises SystemExit where the sides of a case did not do the same.
    """
    print(f"{'case':<28} {'measure':<12} {'mmcl':>10} {'peer':>10} {'unit':<4} {'ratio':>7}")
    table = []
    for case in cases:
        sides, peer = measure_sides(case, arguments.rounds, flags)
        check(case.name, sides)
        for measure, unit in case.units.items():
            medians = {side: statistics.median(found[measure] for found in sides[side]) for side in sides}
            table.append(row(case.name, measure, unit, medians["mmcl"], peer, medians.get("peer")))
            print(as_line(table[-1]), flush=True)
    return table


def measure_sides(case: Case, rounds: int, flags: Sequence[str]) -> tuple[Sides, str]:
    """Both sides in turn, and the name of the other, with the reason if it was left out."""
    skipped = case.skipped
    sides: Sides = {"mmcl": []} if skipped or not case.peer else {"mmcl": [], "peer": []}
    for number in range(rounds):
        if number and sides["mmcl"][0].get("time", 0) > LONG:
            break
        for side in list(sides):
            found = in_own_process(case.name, side, flags)
            if "missing" in found:
                skipped = f"{found['missing']} is not installed"
                del sides[side]
            else:
                sides[side].append(found)
    return sides, f"{case.peer} (skipped: {skipped})" if skipped else case.peer


def in_own_process(case: str, side: str, flags: Sequence[str]) -> dict[str, Any]:
    """The last line of output of this script when it measures one side."""
    command = [sys.executable, sys.argv[0], "--cases", case, "--side", side, *flags]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    *told, last = finished.stdout.splitlines()
    for line in told:
        print(line)
    result: dict[str, Any] = json.loads(last)
    return result


def peak_memory() -> float:
    """MiB that this process has held, on Linux. `getrusage` would count what its parent held when it started this one."""
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1024


def row(case: str, measure: str, unit: str, ours: float, peer: str = "", theirs: float | None = None) -> Row:
    ratio = ours / theirs if theirs else None
    return {"case": case, "measure": measure, "unit": unit, "mmcl": ours, "peer": peer, "peer_value": theirs, "ratio": ratio}


def as_line(row: Row) -> str:
    theirs, ratio = ("-" if row[key] is None else f"{row[key]:.4g}" for key in ("peer_value", "ratio"))
    start = f"{row['case']:<28} {row['measure']:<12} {row['mmcl']:>10.4g}"
    return f"{start} {theirs:>10} {row['unit']:<4} {ratio:>7}  {row['peer']}"


def write_json(file: Path | None, bench: str, rows: list[Row]) -> None:
    """Writes nothing without a file."""
    if file:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        file.write_text(json.dumps({"bench": bench, "machine": machine, "rows": rows}, indent=1) + "\n")
        print(f"written to {file}")
