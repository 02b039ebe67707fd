"""How much of what lies there a source uses, and what it leaves out: one line wherever data are opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmcl.files.listing import valid_name
from mmcl.terminal import counted, printable_line

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Unused:
    """Files that are left out for one reason.

    Attributes:
        count: how many.
        examples: names of the first, at most `EXAMPLES`.
    """

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """How many of its files, rows or members a source uses.

    Attributes:
        unit: what is counted, in the plural, e.g. "files".
        used: how many are used.
        unused: reason -> those that are left out for it; nothing is counted twice. A reason follows its count in a sentence:
            ".heic", "without image", "not in captions.csv".
    """

    unit: str
    used: int
    unused: Mapping[str, Unused]

    @property
    def total(self) -> int:
        """All, used and unused."""
        return self.used + sum(unused.count for unused in self.unused.values())

    def to_text(self) -> str:
        """ "5 of 9 files used; not used: 3 .heic (a.heic, b.heic, c.heic), 1 .md (README.md)"."""
        line = f"{self.used:,} of {counted(self.total, self.unit.removesuffix('s'))} used"
        return f"{line}; not used: {counts_to_text(self.unused)}" if self.unused else line

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        unused = {reason: asdict(unused) for reason, unused in self.unused.items()}
        return {"unit": self.unit, "used": self.used, "total": self.total, "unused": unused}


def count_unused(unused: Iterable[tuple[str, str]]) -> dict[str, Unused]:
    """`Usage.unused` from pairs (reason, name), of which only the first few names are kept."""
    counts: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    for reason, name in unused:
        counts[reason] = counts.get(reason, 0) + 1
        if counts[reason] <= EXAMPLES:
            examples.setdefault(reason, []).append(valid_name(name))
    return {reason: Unused(count, tuple(examples[reason])) for reason, count in counts.items()}


def counts_to_text(unused: Mapping[str, Unused]) -> str:
    """Reasons with their counts and examples, the most frequent first."""
    most_first = sorted(unused.items(), key=lambda item: -item[1].count)
    return ", ".join(_shown(reason, unused) for reason, unused in most_first)


def incomplete(total: int, unit: str, missing: Mapping[str, int], broken: int) -> list[str]:
    """One line that says how many samples lack something, or none where all are whole.

    Args:
        total: samples.
        unit: what they are, in the plural.
        missing: what is missing -> in how many; what is missing in all is said of none.
        broken: samples that cannot be used.
    """
    said = [f"{count:,} with {what}" for what, count in missing.items() if 0 < count < total]
    said += [f"{broken:,} broken"] if broken else []
    return [f"of {total:,} {unit}: {', '.join(said)}; `mmcl data verify` lists them"] if said else []


def merge_unused(parts: Iterable[Mapping[str, Unused]]) -> dict[str, Unused]:
    """`Usage.unused` of several parts as that of the whole."""
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
