"""The table of losses: functions, requirements and test arguments by name. It does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmcl.registry import Registry


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """A loss, with the information that its contract suite (`mmcl.testing.check_loss`) needs.

    Attributes:
        function: "module:name", or the function itself. Parameters before the `*` are tensors with one row or one id per sample
            of this process; those after it are the same on all processes.
        needs: requirements on the data or the model, in words.
        rows: names of the parameters that are rows [N, D].
        shared: names of the parameters that are rows shared by all processes, such as a queue, and their number in tests.
        args: the other arguments for tests; small enough for a loop in float64.
        learned: which of `args` may be a tensor with a gradient.
        differentiable: rows that receive a gradient, by default all. Empty if a part of the loss that depends on every row is
            treated as constant, because finite differences would then give another gradient.
        unit: whether the loss is invariant to the length of the rows.
        extreme: arguments with which the loss is sharpest, but still finite in float32.
        tolerance: relative error allowed between float32 and float64 rows.

    Example:
        >>> entry = LossEntry(function="mmcl.losses.softmax:clip_loss", needs="pairs", rows=("image", "text"))
        >>> entry.load().__name__
        'clip_loss'
    """

    function: str | Callable[..., Any]
    needs: str
    rows: tuple[str, ...]
    shared: Mapping[str, int] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    learned: tuple[str, ...] = ()
    differentiable: tuple[str, ...] | None = None
    unit: bool = True
    extreme: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5

    def load(self) -> Callable[..., Any]:
        """Returns the function, imported on first use."""
        if not isinstance(self.function, str):
            return self.function
        module, name = self.function.split(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


class LossRegistry(Registry):
    """A registry of losses: `LOSSES["clip"]` is the function, `LOSSES.entry("clip")` its entry in the table."""

    def __init__(self, entries: Mapping[str, LossEntry]):
        super().__init__("loss", {name: entry.function for name, entry in entries.items()})
        self._lines = dict(entries)

    def entry(self, name: str) -> LossEntry:
        """Returns the entry of a loss. Raises UserError if the name is unknown."""
        self[name]
        return self._lines[name]

    def add(self, name: str, entry: LossEntry) -> None:
        """Registers your own loss, so that `mmcl.testing.check_loss` can test it. Raises UserError if the name is taken."""
        self.register(name, entry.function)
        self._lines[name] = entry


LOSSES = LossRegistry(
    {
        "barlow_twins": LossEntry(
            function="mmcl.losses.without_negatives:barlow_twins_loss",
            needs="two views of every sample",
            rows=("a", "b"),
            unit=False,
            tolerance=1e-4,
        ),
        "byol": LossEntry(
            function="mmcl.losses.without_negatives:byol_loss",
            needs="two views of every sample, a predictor and a momentum teacher",
            rows=("prediction", "target"),
            differentiable=("prediction",),
        ),
        "clip": LossEntry(
            function="mmcl.losses.softmax:clip_loss",
            needs="pairs of images and texts",
            rows=("image", "text"),
            args={"scale": 10.0},
            learned=("scale",),
            extreme={"scale": 1e6},
        ),
        "contrastive_pair": LossEntry(
            function="mmcl.losses.metric_learning:contrastive_pair_loss",
            needs="samples with classes",
            rows=("rows",),
            args={"margin": 1.5},
            unit=False,
            tolerance=1e-4,
        ),
        "dcl": LossEntry(
            function="mmcl.losses.two_views:dcl_loss",
            needs="two views of every sample",
            rows=("a", "b"),
            args={"temperature": 0.2},
            learned=("temperature",),
            extreme={"temperature": 1e-6},
        ),
        "info_nce": LossEntry(
            function="mmcl.losses.softmax:info_nce",
            needs="queries and keys",
            rows=("query", "key"),
            args={"temperature": 0.2},
            learned=("temperature",),
            extreme={"temperature": 1e-6},
        ),
        "lejepa": LossEntry(
            function="mmcl.losses.without_negatives:lejepa_loss",
            needs="two views of every sample, and small crops if there are any",
            rows=("a", "b"),
            args={"slices": 5, "weight": 0.3},
            unit=False,
            tolerance=1e-4,
        ),
        "margin": LossEntry(
            function="mmcl.losses.metric_learning:margin_loss",
            needs="samples with classes",
            rows=("rows",),
            args={"beta": 1.2, "negatives": "all"},
            learned=("beta",),
            tolerance=1e-4,
        ),
        "moco": LossEntry(
            function="mmcl.losses.softmax:moco_loss",
            needs="two views of every sample, a momentum teacher and a queue",
            rows=("query", "key"),
            shared={"queue": 7},
            args={"temperature": 0.2},
            learned=("temperature",),
            differentiable=("query",),
            extreme={"temperature": 1e-6},
        ),
        "nt_xent": LossEntry(
            function="mmcl.losses.two_views:nt_xent",
            needs="two views of every sample",
            rows=("a", "b"),
            args={"temperature": 0.2},
            learned=("temperature",),
            extreme={"temperature": 1e-6},
        ),
        "siglip": LossEntry(
            function="mmcl.losses.sigmoid:siglip_loss",
            needs="pairs of images and texts",
            rows=("image", "text"),
            args={"scale": 10.0, "bias": -2.0},
            learned=("scale", "bias"),
            extreme={"scale": 1e6},
        ),
        "simcse": LossEntry(
            function="mmcl.losses.softmax:simcse_loss",
            needs="texts under two dropout masks, or with positives; hard negatives if there are any",
            rows=("a", "b", "negative"),
            args={"temperature": 0.2, "negative_log_weight": 0.5},
            learned=("temperature",),
            extreme={"temperature": 1e-6},
        ),
        "supcon": LossEntry(
            function="mmcl.losses.two_views:supcon_loss",
            needs="samples with classes",
            rows=("rows",),
            args={"temperature": 0.2},
            learned=("temperature",),
            extreme={"temperature": 1e-6},
        ),
        "swav": LossEntry(
            function="mmcl.losses.without_negatives:swav_loss",
            needs="two views of every sample and learned prototypes",
            rows=("a", "b"),
            shared={"prototypes": 5},
            args={"temperature": 0.2},
            learned=("temperature",),
            differentiable=(),
            extreme={"temperature": 1e-6, "epsilon": 1e-6},
        ),
        "triplet": LossEntry(
            function="mmcl.losses.metric_learning:triplet_loss",
            needs="samples with classes",
            rows=("rows",),
            args={"miner": "all"},
            tolerance=1e-4,
        ),
        "vicreg": LossEntry(
            function="mmcl.losses.without_negatives:vicreg_loss",
            needs="two views of every sample",
            rows=("a", "b"),
            unit=False,
            tolerance=1e-4,
        ),
    }
)
