"""Matryoshka training: the loss of a method over prefixes of its rows, so that a prefix of an embedding is one too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmcl.config import Config, MatryoshkaConfig
from mmcl.core.prefixes import check_narrower, checked_shares, unit_prefix
from mmcl.encoders.heads import NoHead
from mmcl.errors import UserError
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput

_WHERE = "train.matryoshka."


class NestedLoss:
    """Compute the weighted mean of a method's loss over prefixes of its rows, of unit length, and over the rows themselves.

    The prefixes are cut from gathered rows, and `Method.loss` is pure: the gradient stays that of one process and one batch.
    The metrics of the method are the same mean; "loss_64" is the loss of the prefixes of width 64, before it is weighted.

    Args:
        method: its loss is computed; its `nested_rows` are cut.
        config: widths of the prefixes, and weights.
        loss: another loss of the same rows in place of the method's own, such as one that adds teachers; None for that.
    """

    def __init__(
        self,
        method: Method,
        config: MatryoshkaConfig,
        loss: Callable[[Embeddings, Batch], LossOutput] | None = None,
    ):
        self.loss, self.nested = loss or method.loss, frozenset(method.nested_rows)
        dims = (*config.dims, _width(method))
        self.shares = dict(zip(dims, checked_shares(config.dims, config.weights, _WHERE), strict=True))

    def __call__(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        """Return this process's share of the mean; arguments as for `Method.loss`."""
        parts: defaultdict[str, list[Tensor]] = defaultdict(list)
        losses: dict[str, Tensor] = {}
        for dim, share in self.shares.items():
            output = self.loss(self._cut(embeddings, dim), batch)
            losses[f"loss_{dim}"] = output.loss.detach()
            for name, value in {"": output.loss, **output.metrics}.items():
                parts[name].append(share * value)
        mean = {name: torch.stack(values).sum() for name, values in parts.items()}
        return LossOutput(mean.pop(""), mean | losses)

    def _cut(self, embeddings: Embeddings, dim: int) -> Embeddings:
        local = self._prefixes(embeddings.local, dim)
        # A loss may use that one process has all rows, which are the same tensors then.
        everything = local if embeddings.all is embeddings.local else self._prefixes(embeddings.all, dim)
        return replace(embeddings, local=local, all=everything)

    def _prefixes(self, rows: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
        return {name: unit_prefix(row, dim) if name in self.nested else row for name, row in rows.items()}


def check_matryoshka(config: Config, method: Method) -> None:
    """Raise UserError if `train.matryoshka` has settings that a run cannot use with this method and these heads."""
    matryoshka, name = config.train.matryoshka, config.method.name
    if not matryoshka.dims:
        if matryoshka.weights is not None:
            raise UserError(f"{_WHERE}weights has no effect without {_WHERE}dims: give these, or leave it out")
        return
    if not method.nested_rows:
        raise UserError(
            f"{_WHERE}dims: the loss of {name} has no prefixes; leave it out, or take a method such as clip or siglip"
        )
    headed = [tower for tower, one in method.towers.items() if not isinstance(one.head, NoHead)]
    if method.embedding == "features" and headed:
        raise UserError(
            f"{_WHERE}dims trains prefixes of what the head gives, and a model of {name} gives the features before it: "
            f"set {headed[0]}.head to {{name: none}}, or leave it out"
        )
    checked_shares(matryoshka.dims, matryoshka.weights, _WHERE)
    check_narrower(matryoshka.dims, _width(method), _WHERE)


def _width(method: Method) -> int:
    return next(iter(method.towers.values())).embed_dim  # type: ignore[return-value]
