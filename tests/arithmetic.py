"""Bounds on the difference of two correct results, derived from floating-point arithmetic instead of measured on one processor.

A sum of K terms in any order is off by about sqrt(K) roundings (Higham & Mary, "A New Approach to Probabilistic Rounding Error
Analysis", 2019, theorem 2.4); processors, threads and batch sizes choose different orders. Each bound here is for two results
that are both rounded, with unit roundoff eps / 2 each, which together give the eps of a type.
"""

from __future__ import annotations

import math

import torch
from torch import nn

MARGIN = 4
"""The constant of the probabilistic bound: the chance that a Gaussian error exceeds it is below one in ten thousand."""


def sum_tolerance(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """The absolute difference allowed between two sums of `terms` products whose factors are rows of unit length."""
    return MARGIN * math.sqrt(terms) * torch.finfo(dtype).eps


def network_tolerance(module: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """The absolute difference allowed between two computations of the unit rows that a network gives.

    Every weight adds the rounding of its own sums, as many terms as it has inputs: deeper and wider networks may differ more.
    """
    terms = [math.sqrt(weight[0].numel()) for weight in module.parameters() if weight.ndim > 1]
    return MARGIN * sum(terms) * torch.finfo(dtype).eps
