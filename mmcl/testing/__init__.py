"""Contract suites for what you add to mmcl: each checks one entry of a registry; an AssertionError says what is broken."""

from __future__ import annotations

from mmcl.testing.losses import LOSS_CHECKS, check_loss, toy_loss_arguments

__all__ = ["LOSS_CHECKS", "check_loss", "toy_loss_arguments"]
