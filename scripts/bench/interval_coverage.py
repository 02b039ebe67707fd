"""Coverage of every interval in a report, by simulation: one table over all statistics with an interval.

Test sets are drawn from populations whose value is known, small and large, easy and hard, and evaluated as a report does it. A
cell is a population and a number of rows; it holds if its intervals hold the truth in 93 to 97 % of the test sets. Two things
are judged otherwise, as no interval can do better:

- At the edge, where n times the variance (in units of the range) is below `statistics.EDGE`, what has not been seen decides. Of
  a share that is the rule of three: at rates below 3 / n, and so at 0 and 1, only the lower end can miss, and coverage rises to
  100 %. It must be 93 % or more; so must it where many rows are equal and an end cannot lie between them, as of a median rank.
- Coverage of counts goes up and down with the rate (Brown, Cai and DasGupta, "Interval estimation for a binomial proportion",
  2001), so it is the mean over the rates within one count of the one that is named.

Cells that are near a limit are drawn four times as often. "given" is the share of the test sets that have an interval at all;
cells where it is below a half have none.

python scripts/bench/interval_coverage.py --draws 1000 --json interval_coverage.json
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from detection_populations import DETECTIONS
from interval_populations import STATISTICS as OF_ROWS
from interval_populations import Population
from side_by_side import Row, write_json

SIZES = (5, 10, 20, 50, 200, 1000)
LEAST, MOST = 0.93, 0.97
STATISTICS = OF_ROWS | DETECTIONS
AGAIN = 4
"""How many times as often cells near a limit are drawn."""


@cache
def populations(statistic: str) -> tuple[Population, ...]:
    return tuple(STATISTICS[statistic]())


@dataclass(frozen=True)
class Cell:
    """The intervals of one population and size: the share of them that hold the truth, and of the test sets that have one."""

    name: str
    is_at_edge: bool
    held: float
    given: float
    draws: int

    @property
    def error(self) -> float:
        """The standard error of `held`, where the truth is 95 %."""
        return float(np.sqrt(0.95 * 0.05 / max(1, self.draws * self.given)))

    @property
    def verdict(self) -> str:
        """Nothing where it holds, within two standard errors."""
        if self.given < 0.5:
            return ""
        low, high = self.held < LEAST - 2 * self.error, self.held > MOST + 2 * self.error and not self.is_at_edge
        return "low" if low else "high" if high else ""


def measure(population: Population, n: int, draws: int, again: int = AGAIN) -> Cell:
    """One cell. Where it is not clear that it holds, `again` times as many test sets are drawn."""
    cell = _measure(population, n, draws, seed=0)
    is_clear = LEAST + 2 * cell.error < cell.held and (cell.is_at_edge or cell.held < MOST - 2 * cell.error)
    return cell if is_clear or cell.given < 0.5 or again == 1 else _measure(population, n, draws * again, seed=1)


def _measure(population: Population, n: int, draws: int, seed: int) -> Cell:
    rng = np.random.default_rng((seed, n))
    found = [population.draw(rng, n) for _ in range(draws)]
    ends = [(one.low, truth, one.high) for one, truth in found if one.low is not None and one.high is not None]
    held = sum(low <= truth + 1e-9 and truth - 1e-9 <= high for low, truth, high in ends)
    return Cell(population.name, population.is_at_edge(n), held / max(1, len(ends)), len(ends) / draws, draws)


def line(statistic: str, n: int, cells: list[Cell]) -> Row:
    """One line of the table: the coverage inside and at the edge, and which cells do not hold."""
    row: Row = {"statistic": statistic, "n": n, "given": float(np.mean([cell.given for cell in cells]))}
    given = [cell for cell in cells if cell.given >= 0.5]
    for where, own in {
        "inside": [cell.held for cell in given if not cell.is_at_edge],
        "edge": [cell.held for cell in given if cell.is_at_edge],
    }.items():
        if own:
            row |= {f"{where} min": min(own), f"{where} mean": float(np.mean(own)), f"{where} max": max(own)}
    row["cells"] = len(given)
    row["failed"] = [f"{cell.name} is {cell.verdict}, {cell.held:.3f} +- {cell.error:.3f}" for cell in given if cell.verdict]
    return row


COLUMNS = tuple(f"{where} {what}" for where in ("inside", "edge") for what in ("min", "mean", "max"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--draws", type=int, default=1000, help="test sets of each cell; of those near a limit four times as many"
    )
    parser.add_argument("--only", default="", help="statistics whose names hold this")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    arguments = parser.parse_args()
    rows = []
    print(f"{'':<38}{'n':>5}{'cells':>6}" + "".join(f"{name:>12}" for name in COLUMNS) + f"{'given':>7}")
    for statistic in (name for name in STATISTICS if arguments.only in name):
        for n in SIZES:
            rows.append(row := line(statistic, n, [measure(one, n, arguments.draws) for one in populations(statistic)]))
            numbers = "".join(f"{row[name]:>12.3f}" if name in row else f"{'-':>12}" for name in COLUMNS)
            print(f"{statistic:<38}{n:>5}{row['cells']:>6}{numbers}{row['given']:>7.2f}", flush=True)
    print(verdict(rows, arguments.draws))
    write_json(arguments.json, "interval_coverage", rows)


def verdict(rows: list[Row], draws: int) -> str:
    """In words, whether all cells hold."""
    cells, failed = sum(row["cells"] for row in rows), [(row, one) for row in rows for one in row["failed"]]
    error = np.sqrt(0.95 * 0.05 / np.array([draws, AGAIN * draws]))
    limits = f"{LEAST:.0%} to {MOST:.0%} inside, {LEAST:.0%} or more at the edge"
    made = f"standard error {error[0]:.4f}, near a limit {error[1]:.4f}"
    if not failed:
        return f"All {cells} cells with an interval hold: {limits} ({made})."
    lines = [f"{len(failed)} of {cells} cells with an interval do NOT hold: {limits} ({made})."]
    return "\n".join(lines + [f"  {row['statistic']}, n = {row['n']}: {one}" for row, one in failed])


if __name__ == "__main__":
    main()
