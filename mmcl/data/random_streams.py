"""Which decision a random number is for: the key after the seed in every hash, so that no two decisions share a draw."""

from __future__ import annotations

from enum import IntEnum


class Stream(IntEnum):
    """Never renumber: the numbers are part of what a seed means."""

    AUGMENT = 1
    CROP = 2
    CAPTION = 3
    REPLACEMENT = 4
    HOLDOUT = 5
    LABELS = 6
    CLASSES = 7
    PART = 8
