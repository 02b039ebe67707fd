"""Adapters of low rank: LoRA and DoRA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmcl.encoders.adapters import Adapter
from mmcl.errors import UserError


class LoRA(Adapter):
    r"""Add a trained matrix of low rank to a frozen one (Hu et al., "LoRA", 2021).

    The changed matrix is $W + \frac{\alpha}{r} B A$ (section 4.1). Initial values are those of the authors' code: B is zero,
    and A is uniform within $\pm I^{-1/2}$.

    Dropout acts on the inputs of the adapter, as in the authors' code, but drops the same inputs for all rows of a forward
    pass, because it is applied to the columns of A.

    Args:
        matrix_OI: the frozen matrix.
        rank: r, the rank of the change.
        alpha: scale of the change, which is divided by the rank.
        dropout: probability of dropping an input of the adapter in training, from 0 to below 1.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, matrix_OI: Tensor, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__()
        if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
            raise UserError(
                f"adapter: rank {rank} must be 1 or more, alpha {alpha} above 0, and dropout {dropout} from 0 to below 1"
            )
        outputs, inputs = matrix_OI.shape
        dtype = torch.promote_types(matrix_OI.dtype, torch.float32)
        self.A = nn.Parameter(matrix_OI.new_empty(rank, inputs, dtype=dtype).uniform_(-(inputs**-0.5), inputs**-0.5))
        self.B = nn.Parameter(matrix_OI.new_zeros(outputs, rank, dtype=dtype))
        self.alpha, self.dropout = float(alpha), dropout

    def change(self, matrix_OI: Tensor) -> Tensor:
        A_RI: Tensor = self.A
        if self.training and self.dropout:
            A_RI = A_RI * nn.functional.dropout(torch.ones_like(A_RI[0]), self.dropout)
        return torch.addmm(matrix_OI.to(A_RI.dtype), self.B, A_RI, alpha=self.alpha / len(A_RI))


class DoRA(LoRA):
    r"""Train the norms of a frozen matrix's rows by themselves, and their directions by LoRA (Liu et al., "DoRA", 2024).

    The changed matrix is $m \frac{W + \frac{\alpha}{r} B A}{\lVert W + \frac{\alpha}{r} B A \rVert}$ (equation 5), row by row:
    a row has the weights of one output. m starts as the norms of the rows of W, and no gradient flows through the denominator
    (section 4.3).

    Args, Raises: as for `LoRA`.
    """

    def __init__(self, matrix_OI: Tensor, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__(matrix_OI, rank=rank, alpha=alpha, dropout=dropout)
        self.magnitude = nn.Parameter(_norms(super().change(matrix_OI)))

    def change(self, matrix_OI: Tensor) -> Tensor:
        direction_OI = super().change(matrix_OI)
        return (self.magnitude / _norms(direction_OI))[:, None] * direction_OI


def _norms(matrix_OI: Tensor) -> Tensor:
    """Return the norms of the rows [O], without gradient; that of a row of zeros is the smallest that can divide it."""
    norm_O: Tensor = torch.linalg.vector_norm(matrix_OI.detach(), dim=1)
    return norm_O.clamp_min(torch.finfo(norm_O.dtype).tiny)
