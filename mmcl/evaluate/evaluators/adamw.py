"""A linear classifier trained for a few epochs with AdamW, following CLIP_benchmark's linear probe."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.rng import permutation, sample_seed

DECAYS = np.logspace(-6, 2, 97)
"""Candidate weight decays: first every sixteenth, then those 8, 4, 2 and 1 places to either side of the best one."""

Labeled = tuple[Tensor, Tensor]


def fit_adamw(
    feature_ND: Tensor, class_N: Tensor, *, weight_decay: float, lr: float, epochs: int, batch_size: int, seed: int
) -> nn.Linear:
    """Minimizes the cross-entropy with AdamW; the learning rate decays from `lr` to 0 along a cosine, updated every step.

    Args:
        feature_ND: float32 [N, D].
        class_N: int64 [N], from 0 without gaps.
        seed: seed of the initial weights and the order of the rows.
    """
    with torch.random.fork_rng():
        torch.manual_seed(sample_seed(seed))
        classifier = nn.Linear(feature_ND.shape[1], int(class_N.max()) + 1).to(feature_ND.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=weight_decay)
    steps = epochs * -(-len(feature_ND) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(len(feature_ND), seed, epoch)).to(feature_ND.device)
        for rows in order.split(batch_size):
            loss = nn.functional.cross_entropy(classifier(feature_ND[rows]), class_N[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.requires_grad_(False)


def choose_weight_decay(train: Labeled, validation: Labeled, **options: float | int) -> float:
    """Chooses the weight decay with the best accuracy on validation rows; ties go to the smaller one.

    Args:
        train, validation: features [N, D] and classes [N].
        options: the other arguments of `fit_adamw`.
    """
    accuracy: dict[int, float] = {}

    def best(candidates: list[int]) -> int:
        for number in candidates:
            if number not in accuracy:
                classifier = fit_adamw(*train, weight_decay=float(DECAYS[number]), **options)  # type: ignore[arg-type]
                accuracy[number] = float((classifier(validation[0]).argmax(dim=1) == validation[1]).double().mean())
        return max(candidates, key=lambda number: accuracy[number])

    chosen = best(list(range(0, len(DECAYS), 16)))
    for step in (8, 4, 2, 1):
        chosen = best([max(chosen - step, 0), chosen, min(chosen + step, len(DECAYS) - 1)])
    return float(DECAYS[chosen])
