"""Anchors of a run to the model that it starts from, against forgetting: of its weights (L2-SP), and of its embeddings."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.config import AnchorConfig, Config
from mmcl.core.precision import unit_rows
from mmcl.encoders.adapters import remove_adapters
from mmcl.encoders.tower import Tower
from mmcl.engine.parameter_groups import group_parameters
from mmcl.engine.weight_layout import own_part
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.types import LossOutput, Views


class WeightAnchor:
    r"""Pull trained weights towards their values at the start of the run, as weight decay pulls them towards zero.

    This is L2-SP (Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", 2018,
    eq. 5), decoupled from the gradient as in AdamW: after each step, $w \leftarrow w - \eta\,\alpha\,(w - w_0)$ with the
    learning rate $\eta$ of the weight's group.

    Args:
        method: with the weights of the start; only those of `anchored_weights` are pulled.
        strength: alpha.
    """

    def __init__(self, method: Method, strength: float):
        self.strength = strength
        self._start = {weight: weight.detach().clone() for _, weight in anchored_weights(method)}

    @torch.no_grad()
    def pull(self, groups: Sequence[Mapping[str, Any]], is_bad: Tensor | None = None) -> None:
        """Move the weights towards the start. Called after every optimizer step with the groups of the optimizer.

        Args:
            groups: groups of the optimizer.
            is_bad: bool scalar on the device: true leaves the weights as they are.
        """
        for group in groups:
            weights = [weight for weight in group["params"] if weight in self._start]
            if weights:
                start, now = [own_part(self._start[weight]) for weight in weights], [own_part(weight) for weight in weights]
                if is_bad is not None:
                    start = [torch.where(is_bad, weight, goal) for weight, goal in zip(now, start, strict=True)]
                torch._foreach_lerp_(now, start, self.strength * group["lr"])


class FeatureAnchor:
    """Add to the loss how far the embeddings of the batch are from those of the frozen start: the mean of 1 - cosine over all
    rows of all views.

    It is a sum over rows, so that micro-batches and processes do not change its gradient. The start is in evaluation mode; it
    shares the memory of the weights that are frozen.

    Args:
        method: with the weights of the start, before they are sharded.
        weight: factor of the term in the loss.

    Attributes:
        towers: name -> frozen copy of each tower that is anchored.
    """

    def __init__(self, method: Method, weight: float):
        self.weight = weight
        self.towers = nn.ModuleDict({name: _frozen_copy(method.towers[name]) for name in anchored_towers(method)})
        self.views = {view: method.views[view] for view in method.embedded_views if method.views[view] in self.towers}

    @torch.no_grad()
    def rows(self, pieces: Iterable[Views]) -> dict[str, Tensor]:
        """Return the embeddings of the start: view -> rows [b, D] of all pieces in order, of unit length."""
        parts: dict[str, list[Tensor]] = {view: [] for view in self.views}
        for piece in pieces:
            for view, tower in self.views.items():
                parts[view].append(unit_rows(self.towers[tower](piece[view], unit=False)))
        return {view: torch.cat(rows) for view, rows in parts.items()}

    def add(self, output: LossOutput, rows: Mapping[str, Tensor], start: Mapping[str, Tensor], total: int) -> LossOutput:
        """Return the loss of a step with the distance, and this as the metric "feature_distance".

        Args:
            output: this process's share of the loss.
            rows: this process's rows, as `Method.encode` returns them.
            start: their embeddings by the start, see `rows`.
            total: number of rows of each view over all processes.
        """
        far = [(1 - (unit_rows(rows[view]) * start[view]).sum(1)).sum() for view in self.views]
        distance = torch.stack(far).sum() / (total * len(far))
        return LossOutput(output.loss + self.weight * distance, {**output.metrics, "feature_distance": distance.detach()})


def anchored_weights(method: Method) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained parameters that have trained values at the start: those of `Method.pretrained`, without adapters."""
    for name, part in method.pretrained.items():
        tower: Tower = method.towers[name]  # type: ignore[assignment]
        for path, parameter in (tower if part == "tower" else tower.encoder).named_parameters():
            if parameter.requires_grad and ".parametrizations." not in f".{path}":
                yield f"{name}.{path}", parameter


def anchored_towers(method: Method) -> list[str]:
    """Return the names of the towers that start with a trained head, change in training, and embed views."""
    embedded = {method.views[view] for view in method.embedded_views}
    return [
        name
        for name, part in method.pretrained.items()
        if part == "tower" and name in embedded and any(p.requires_grad for p in method.towers[name].parameters())
    ]


def check_anchors(config: Config, method: Method) -> None:
    """Raise UserError if `train.anchor` has settings that have no effect, or would overshoot the start."""
    anchor = config.train.anchor
    for setting in (name for name in ("l2_sp", "features") if getattr(anchor, name) and not method.pretrained):
        raise UserError(
            f"train.anchor.{setting} keeps a trained model from changing, and nothing is trained yet: set init to a trained "
            "model, or leave it out"
        )
    if anchor.l2_sp:
        _check_weight_anchor(anchor, config, method)
    if anchor.features:
        _check_feature_anchor(method)


def _check_weight_anchor(anchor: AnchorConfig, config: Config, method: Method) -> None:
    anchored = {weight for _, weight in anchored_weights(method)}
    if not anchored:
        raise UserError("train.anchor.l2_sp has no effect: all weights that are trained are new; leave it out")
    rate = max(group.lr for group in group_parameters(method, config.optim) if anchored.intersection(group.parameters))
    if anchor.l2_sp * rate >= 1:
        raise UserError(
            f"train.anchor.l2_sp {anchor.l2_sp:g} times the learning rate {rate:g} moves weights beyond the start in one step: "
            f"give less than {1 / rate:g}"
        )


def _check_feature_anchor(method: Method) -> None:
    if not method.embedded_views:
        raise UserError(
            f"train.anchor.features compares embeddings, and {type(method).__name__} compares what a predictor makes of them: "
            "take train.anchor.l2_sp"
        )
    for name, part in method.pretrained.items():
        if part == "encoder":
            raise UserError(
                f"train.anchor.features compares embeddings with those of the start, and the head of the {name} tower is new: "
                "keep the head of init, or take train.anchor.l2_sp"
            )
    if not anchored_towers(method):
        raise UserError("train.anchor.features has no effect: the towers that have trained weights are frozen; leave it out")


def _frozen_copy(tower: nn.Module) -> nn.Module:
    shared = {id(parameter): parameter for parameter in tower.parameters() if not parameter.requires_grad}
    twin = copy.deepcopy(tower, dict(shared))
    remove_adapters(twin)
    return twin.requires_grad_(False).eval()
