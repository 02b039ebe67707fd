"""Report of used and unused files, rows and members of a source, in one line wherever data are opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmcl.files.listing import valid_name
from mmcl.terminal import counted, printable_line

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Unused:
    """Files that are not used for one reason.

    Attributes:
        count: number of files.
        examples: the first names, at most `EXAMPLES`.
    """

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Number of files, rows or members that a source uses.

    Attributes:
        unit: the counted unit in the plural, e.g. "files".
        used: number of used units.
        unused: reason -> units unused for that reason; each is counted once. A reason follows its count in a sentence:
            ".heic", "without image", "not in captions.csv".
    """

    unit: str
    used: int
    unused: Mapping[str, Unused]

    @property
    def total(self) -> int:
        """Number of used and unused units."""
        return self.used + sum(unused.count for unused in self.unused.values())

    def to_text(self) -> str:
        """ "5 of 9 files used; not used: 3 .heic (a.heic, b.heic, c.heic), 1 .md (README.md)"."""
        line = f"{self.used:,} of {counted(self.total, self.unit.removesuffix('s'))} used"
        return f"{line}; not used: {counts_to_text(self.unused)}" if self.unused else line

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON values."""
        unused = {reason: asdict(unused) for reason, unused in self.unused.items()}
        return {"unit": self.unit, "used": self.used, "total": self.total, "unused": unused}


def count_unused(unused: Iterable[tuple[str, str]]) -> dict[str, Unused]:
    """Builds `Usage.unused` from pairs (reason, name); keeps only the first few names."""
    counts: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    for reason, name in unused:
        counts[reason] = counts.get(reason, 0) + 1
        if counts[reason] <= EXAMPLES:
            examples.setdefault(reason, []).append(valid_name(name))
    return {reason: Unused(count, tuple(examples[reason])) for reason, count in counts.items()}


def counts_to_text(unused: Mapping[str, Unused]) -> str:
    """Formats reasons with their counts and examples, most frequent first."""
    most_first = sorted(unused.items(), key=lambda item: -item[1].count)
    return ", ".join(_shown(reason, unused) for reason, unused in most_first)


def incomplete(total: int, unit: str, missing: Mapping[str, int], broken: int) -> list[str]:
    """Returns one line with the number of incomplete samples, or an empty list if all are complete.

    Args:
        total: number of samples.
        unit: name of the samples, in the plural.
        missing: missing item -> number of samples that lack it; an item that all samples lack is not reported.
        broken: number of samples that cannot be used.
    """
    said = [f"{count:,} with {what}" for what, count in missing.items() if 0 < count < total]
    said += [f"{broken:,} broken"] if broken else []
    return [f"of {total:,} {unit}: {', '.join(said)}; `mmcl data verify` lists them"] if said else []


def merge_unused(parts: Iterable[Mapping[str, Unused]]) -> dict[str, Unused]:
    """Merges `Usage.unused` of several parts."""
    merged: dict[str, Unused] = {}
    for part in parts:
        for reason, unused in part.items():
            before = merged.get(reason, Unused(0))
            merged[reason] = Unused(before.count + unused.count, (*before.examples, *unused.examples)[:EXAMPLES])
    return merged


def _shown(reason: str, unused: Unused) -> str:
    more = ", ..." if unused.count > len(unused.examples) else ""
    examples = f" ({', '.join(unused.examples)}{more})" if unused.examples else ""
    return printable_line(f"{unused.count:,} {reason}{examples}")
