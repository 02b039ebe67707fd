"""Contract suites for your own extensions of mmcl. Each checks one registry entry; an AssertionError says what is broken.

The tests of mmcl run the same suites over all registries. No test framework is needed:

    from mmcl.testing import check_method
    check_method(MyMethod)
"""

from __future__ import annotations

from mmcl.testing.augmentations import check_augmentation
from mmcl.testing.encoders import check_encoder
from mmcl.testing.evaluators import check_evaluator
from mmcl.testing.losses import LOSS_CHECKS, check_loss, toy_loss_arguments
from mmcl.testing.methods import METHOD_CHECKS, check_method
from mmcl.testing.sources import check_source

__all__ = [
    "LOSS_CHECKS",
    "METHOD_CHECKS",
    "check_augmentation",
    "check_encoder",
    "check_evaluator",
    "check_loss",
    "check_method",
    "check_source",
    "toy_loss_arguments",
]
