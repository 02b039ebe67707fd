"""Detection of collapsed embeddings during training: numbers for the log, and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl.core.geometry import (
    alignment,
    effective_rank,
    feature_std,
    is_collapse,
    modality_gap,
    pair_similarities,
    uniformity,
)
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.types import Embeddings

logger = get_logger(__name__)

_ROWS = 256


class CollapseMonitor:
    """Measure steps of a run; each verdict is logged once, when it first applies."""

    def __init__(self) -> None:
        self._holding: set[str] = set()

    def check(self, step: int, method: Method, rows: Mapping[str, Tensor], scale: float | None) -> dict[str, float | str]:
        """Return the measurements of a step, with any problems under "verdict".

        Args:
            step: number of the step.
            method: the method being trained.
            rows: what `few_rows` returned, on the host.
            scale: inverse temperature of the loss, or None.
        """
        numbers = measure(method, rows)
        found = verdicts(method, numbers, scale)
        for verdict in found:
            if verdict not in self._holding:
                logger.warning(f"step {step}: {verdict}")
        self._holding = set(found)
        return {**numbers, **({"verdict": "; ".join(found)} if found else {})}


def few_rows(embeddings: Embeddings) -> dict[str, Tensor]:
    """Return up to 256 rows of every view, spaced evenly over the global batch, and their ids under the name "ids"."""
    every = -(-len(embeddings.all_ids) // _ROWS)
    return {
        **{f"rows/{name}": row.detach()[::every] for name, row in embeddings.all.items()},
        "ids": embeddings.all_ids[::every],
    }


def measure(method: Method, few: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the geometry of what `few_rows` returned, see core/geometry.py. Fast on a CPU only: it decomposes matrices.

    Spread, rank and uniformity are measured on the first view of each tower; with several towers the names have the tower as
    a suffix, as in `effective_rank_image`. Measurements of pairs use the first two views. The spread is the smallest over all
    outputs of the tower, including teachers and targets, because a batch norm in a predictor hides a collapse of its inputs.
    """
    all_rows = {name.removeprefix("rows/"): row for name, row in few.items() if name != "ids"}
    rows = {name: normalize(row.double(), dim=1) for name, row in all_rows.items()}
    views = [view for view in method.views if view in rows]
    if not views or len(rows[views[0]]) < 2:
        return {}
    towers = sorted({method.views[view] for view in views})
    numbers: dict[str, Tensor] = {}
    for tower in towers:
        suffix = f"_{tower}" if len(towers) > 1 else ""
        own = [view for view in method.views if method.views[view] == tower]
        outputs = [row for name, row in rows.items() if any(f"_{name}".endswith(f"_{view}") for view in own)]
        first = next(rows[view] for view in own if view in rows)
        numbers[f"feature_std{suffix}"] = torch.stack([feature_std(row) for row in outputs]).min()
        numbers[f"effective_rank{suffix}"] = effective_rank(first)
        numbers[f"uniformity{suffix}"] = uniformity(first)
    if len(views) > 1 and rows[views[0]].shape == rows[views[1]].shape:
        pair = rows[views[0]], rows[views[1]]
        positive, negative = pair_similarities(*pair, few["ids"])
        numbers |= {"alignment": alignment(*pair), "positive_similarity": positive, "negative_similarity": negative}
        if len(towers) > 1:
            numbers["modality_gap"] = modality_gap(*pair)
    return {name: float(number) for name, number in numbers.items()}


def verdicts(method: Method, numbers: dict[str, float], scale: float | None) -> list[str]:
    """Return a warning for each problem. Arguments as in `CollapseMonitor.check`."""
    found = []
    for name in numbers:
        if name.startswith("feature_std"):
            suffix = name.removeprefix("feature_std")
            if is_collapse(numbers[name], numbers[f"effective_rank{suffix}"]):
                found.append(
                    f"the {suffix[1:] or 'embedded'} rows have collapsed: they are nearly one point or one line and no longer "
                    "tell samples apart. Lower optim.lr, or look at the method's arguments and the augmentation"
                )
    bound = method.max_log_scale
    if scale is not None and bound is not None and math.log(scale) >= bound - 1e-6:
        found.append(
            f"the temperature has reached its bound 1 / {math.exp(bound):g}: it cannot decrease further, and the loss "
            "is dominated by the hardest pairs. Check for mislabeled pairs, or lower optim.lr"
        )
    return found
