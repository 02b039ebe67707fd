"""Online clustering: prototypes and the balanced assignment of rows to them (SwAV)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmcl.core.precision import in_float32, unit_rows


class Prototypes(nn.Module):
    """K learned unit vectors without bias; the scores of a row are its cosines with them.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, section 3.1.

    Args:
        count: K.
        dim: width D of a row.
    """

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(unit_rows(torch.randn(count, dim)))

    @in_float32
    def forward(self, row_ND: Tensor, *, frozen: bool = False) -> Tensor:
        """Unit-length rows [N, D] to scores [N, K]; frozen, the prototypes get a gradient of zero."""
        # A zero gradient rather than None, because DDP waits for the gradient of every parameter.
        weight = self.weight.detach() + 0 * self.weight if frozen else self.weight
        return row_ND @ weight.to(row_ND).T

    @torch.no_grad()
    def normalize(self) -> None:
        """Scales the prototypes to unit length; call it after every step."""
        self.weight.copy_(unit_rows(self.weight))


@torch.no_grad()
@in_float32
def sinkhorn(score_NK: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    r"""Soft assignments of rows to clusters, as equal in size as the iterations make them: [N, K], rows sum to 1.

    $\mathrm{Diag}(u) \exp(S / \epsilon) \mathrm{Diag}(v)$ of eq. 5 of the paper, by Sinkhorn & Knopp's alternation, which is
    exact for the rows at any number of iterations and for the clusters (N / K each) in the limit. In the log domain: a small
    $\epsilon$ neither overflows nor loses clusters.

    Args:
        score_NK: the scores of the rows of all processes.
        epsilon: weight of the entropy; smaller values give harder assignments.
        iterations: number of alternations; 3 in the paper.
    """
    log_NK = score_NK / epsilon
    for _ in range(iterations):
        log_NK = log_NK - log_NK.logsumexp(0)
        log_NK = log_NK - log_NK.logsumexp(1, keepdim=True)
    return log_NK.exp()
