"""Thresholds of yes/no questions, fitted on one part of the rows for use on others.

Which part a row is in depends on its id alone, so that no order, no other row and no process has an influence.

Shape suffix: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmcl.data.captions import text_hash
from mmcl.data.random_streams import Stream
from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.measures.statistics import SEED
from mmcl.evaluate.validation import Values, as_tensor, is_text
from mmcl.rng import uniform

FEWEST = 10
"""Positives, and negatives, of a question that a part needs."""

CriterionName = Literal["f1", "youden", "recall", "precision", "specificity"]
_OPTIMA = {"f1": "the largest F1", "youden": "the largest recall + specificity (Youden's J)"}
_FLOORS = {
    "recall": "the largest specificity at a recall of at least {}",
    "precision": "the largest recall at a precision of at least {}",
    "specificity": "the largest recall at a specificity of at least {}",
}


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a threshold is fitted for.

    Attributes:
        name: "f1" or "youden" (recall + specificity - 1, Youden, 1950), of which it has the largest value; or "recall",
            "precision" or "specificity", which it keeps at or above `floor`.
        floor: above 0 and at most 1; None for the first two.

    Raises:
        UserError: the name is unknown, or the floor is missing, out of range, or has no meaning.
    """

    name: CriterionName
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.name not in (*_OPTIMA, *_FLOORS):
            raise unknown_name("criterion", self.name, [*_OPTIMA, *_FLOORS])
        if self.name in _OPTIMA and self.floor is not None:
            raise UserError(f"criterion {self.name} has no floor: remove floor, or give one of {', '.join(_FLOORS)}")
        if self.name in _FLOORS and not _is_share(self.floor):
            raise UserError(f"criterion {self.name} needs a floor above 0 and at most 1, such as floor: 0.9, not {self.floor}")

    def __str__(self) -> str:
        return _OPTIMA.get(self.name) or _FLOORS[self.name].format(self.floor)

    def fit(self, score_N: np.ndarray, target_N: np.ndarray) -> float | None:
        """Fits the threshold of "yes if score >= threshold".

        It is halfway between the lowest score that gets a yes and the next lower one, so that rounding decides nothing. Of
        equally good thresholds, the highest is taken.

        Args:
            score_N: finite, float64.
            target_N: bool, both values present.

        Returns:
            The threshold; None if all scores are equal, or no threshold keeps to the floor.
        """
        score, place_N = np.unique(-score_N, return_inverse=True)
        if len(score) < 2:
            return None
        true = np.bincount(place_N, target_N).cumsum()
        false = np.bincount(place_N, ~target_N).cumsum()
        chosen = self._choose(true, false)
        if chosen is None:
            return None
        lowest = -float(score[chosen])
        below = -float(score[chosen + 1]) if chosen + 1 < len(score) else lowest
        halfway = lowest / 2 + below / 2
        return halfway if below < halfway else lowest

    def _choose(self, true: np.ndarray, false: np.ndarray) -> int | None:
        """Place of a threshold, given the true and false positives at each, from the highest to the lowest."""
        positives, negatives = true[-1], false[-1]
        if self.name == "f1":
            return int((2 * true / (true + false + positives)).argmax())
        if self.name == "youden":
            return int((true * negatives - false * positives).argmax())
        assert self.floor is not None
        share = {
            "recall": true / positives,
            "precision": true / (true + false),
            "specificity": 1 - false / negatives,
        }[self.name]
        kept = np.flatnonzero(share >= self.floor)
        if not len(kept):
            return None
        # Recall rises and specificity falls as the threshold is lowered. The highest of those with equal recall is best.
        return int(kept[0]) if self.name == "recall" else int(kept[true[kept].argmax()])


def _is_share(floor: object) -> bool:
    return isinstance(floor, int | float) and 0 < floor <= 1


def calibration_part(ids: Values, rows: int, share: float) -> np.ndarray:
    """Which rows thresholds are fitted on: bool [N]. Rows with equal ids are on one side.

    Args:
        ids: integers or strings [N].
        rows: N.
        share: expected share of ids, above 0 and below 1.

    Raises:
        UserError: the share is out of range, or the ids are not N integers or strings.
    """
    if not (isinstance(share, int | float) and 0 < share < 1):
        raise UserError(f"calibration must be a share above 0 and below 1, not {share}")
    numbers = np.array([text_hash(str(one)) for one in ids], np.int64) if is_text(ids) else as_tensor(ids, "ids").cpu().numpy()
    if numbers.shape != (rows,) or numbers.dtype.kind not in "iu":
        raise UserError(f"ids must be {rows} integers or texts, one for each row, not {numbers.dtype} {list(numbers.shape)}")
    is_fitted: np.ndarray = uniform(SEED, Stream.CALIBRATION, numbers) < share
    return is_fitted
