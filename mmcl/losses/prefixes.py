"""Losses over prefixes of rows: Matryoshka training in your own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.core.prefixes import check_narrower, checked_shares, unit_prefix
from mmcl.errors import UserError
from mmcl.losses.arguments import signature_of


def matryoshka(
    loss: Callable[..., Tensor] | nn.Module,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    normalize: bool = True,
) -> MatryoshkaLoss:
    r"""Wraps a loss to train prefixes of rows as embeddings of their own, so that a model can be used at several widths.

    $$\ell = \sum_k w_k \, \ell_k \Big/ \sum_k w_k$$

    where $\ell_k$ is the loss of the first k columns of all rows, and the last k is the full width. Every floating-point matrix
    among the arguments is cut, such as rows, a queue or prototypes; all must be equally wide. Numbers and ids are left as they
    are. A tensor that is passed twice stays one tensor.

    Args:
        loss: a function or module of `mmcl.losses`, or your own loss of rows of any width.
        dims: widths of the prefixes, below the full width, which always counts.
        weights: w, relative weights in the order of `dims`, and last that of the full width; None for equal ones.
        normalize: scale prefixes to unit length; set it to False for a loss of rows that are not, such as `vicreg_loss`. Whole
            rows are given to the loss as they are.

    Returns:
        A module with the call signature and the parameters of the loss.

    Requirements:
        On several processes, use `gathered(matryoshka(...))`, which gathers the rows once.

    Raises:
        UserError: widths or weights are not such numbers, or the loss is a module with state of a fixed width (a queue,
            prototypes); when called, a prefix is not narrower than the rows, or matrices differ in width.

    Source:
        Kusupati et al., "Matryoshka Representation Learning", 2022, eq. 1.

    Example:
        >>> from mmcl.losses import ClipLoss, matryoshka
        >>> criterion = matryoshka(ClipLoss(temperature=0.5), dims=[2])
        >>> round(criterion(torch.eye(3), torch.eye(3)).item(), 4)
        0.3827
    """
    shares = checked_shares(dims, weights)
    if isinstance(loss, nn.Module):
        fixed = [name for name, tensor in loss.state_dict().items() if tensor.ndim > 1]
        if fixed:
            kind = type(loss).__name__
            raise UserError(f"{kind} keeps rows of the full width ({fixed[0]}): wrap the function, and give them to each call")
    return MatryoshkaLoss(loss, tuple(dims), shares, normalize)


class MatryoshkaLoss(nn.Module):
    """Module returned by `matryoshka`.

    Args:
        loss, dims, normalize: as in `matryoshka`.
        shares: weights of the prefixes and of the whole rows, which sum to 1.
    """

    def __init__(
        self, loss: Callable[..., Tensor] | nn.Module, dims: tuple[int, ...], shares: tuple[float, ...], normalize: bool
    ):
        super().__init__()
        self.loss, self.dims, self.shares, self.normalize = loss, dims, shares, normalize
        self.signature = signature_of(loss)

    def extra_repr(self) -> str:
        return f"dims={list(self.dims)}"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        width = self._width([*args, *kwargs.values()])
        parts = []
        for dim, share in zip((*self.dims, width), self.shares, strict=True):
            cut = _Cut(dim, self.normalize)
            parts.append(share * self.loss(*map(cut, args), **{name: cut(value) for name, value in kwargs.items()}))
        return torch.stack(parts).sum()

    def _width(self, values: Iterable[Any]) -> int:
        widths = sorted({rows.shape[1] for rows in _matrices(values)})
        if len(widths) != 1:
            found = f"widths of {', '.join(map(str, widths))}" if widths else "no rows"
            raise UserError(f"matryoshka cuts rows of one width, and the arguments have {found}: pass tensors [N, D]")
        check_narrower(self.dims, widths[0])
        return widths[0]


class _Cut:
    """Cuts the matrices of an argument, each once."""

    def __init__(self, dim: int, normalize: bool):
        self.dim, self.normalize = dim, normalize
        self.done: dict[int, Tensor] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(self, value))
        if not _is_matrix(value):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = unit_prefix(value, self.dim) if self.normalize else value[:, : self.dim]
        return self.done[id(value)]


def _matrices(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        found += _matrices(value) if isinstance(value, list | tuple) else [value] if _is_matrix(value) else []
    return found


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
