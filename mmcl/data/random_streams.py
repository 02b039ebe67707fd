"""Stream keys of random numbers: one per decision, hashed after the seed, so that no two decisions share a draw."""

from __future__ import annotations

from enum import IntEnum


class Stream(IntEnum):
    """Keys of the random streams. Never renumber: a change would alter the results of every seed."""

    AUGMENT = 1
    CROP = 2
    CAPTION = 3
    REPLACEMENT = 4
    HOLDOUT = 5
    LABELS = 6
    CLASSES = 7
    PART = 8
    CALIBRATION = 9
    PATCHES = 10
    CLUSTERS = 11
    NEGATIVES = 12
