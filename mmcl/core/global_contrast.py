"""The contrast of every sample with all negatives of a data set, from small batches and one moving average per sample.

A batch holds few of a sample's negatives, and the logarithm of their noisy sum is biased, which is why InfoNCE needs large
batches. Here the sum in the denominator is a moving average over the batches in which the sample occurred.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmcl.core.info_nce import contrast_of
from mmcl.core.precision import as_scalar, in_float32
from mmcl.core.tiled.pairs import TileShape, check_rows


@in_float32
def log_mean_negative(
    query_ND: Tensor,
    key_MD: Tensor,
    *,
    query_id_N: Tensor,
    key_id_M: Tensor,
    scale: Tensor | float,
    tile: TileShape | None = None,
) -> Tensor:
    r"""Logarithm of every query's mean negative, relative to its positives.

    With $s_{ij} = \mathrm{scale} \cdot q_i^\top k_j$, $N(i)$ the keys of other ids than the query's and $\bar s_i$ the mean
    logit of those with its id:

    $$\log g_i = \log \frac{1}{|N(i)|} \sum_{n \in N(i)} e^{s_{in} - \bar s_i}$$

    This is $g_1$ or $g_2$ of Wei et al. ("FastCLIP", 2024, section 3), there with a single positive, as a logarithm, which does
    not overflow.

    Args:
        query_ND, key_MD: unit-length rows, any floating type. Every query has a key with its id.
        query_id_N, key_id_M: int64 ids; equal ids are positives.
        scale: inverse temperature, positive, a number or a one-element tensor (with a gradient if it is learned).
        tile: queries and keys compared at once; by default chosen from the shapes.

    Returns:
        [N]; minus infinity, with zero gradient, for queries without negatives.

    Raises:
        ValueError: shapes do not match, or the scale is out of range.

    Example:
        >>> rows, ids = torch.eye(3), torch.arange(3)
        >>> log_mean_negative(rows, rows, query_id_N=ids, key_id_M=ids, scale=2.0)
        tensor([-2., -2., -2.])
    """
    check_rows(query_ND, key_MD, query_id_N, key_id_M)
    scale = as_scalar("scale", scale, query_ND, positive=True)
    contrast = contrast_of(query_ND, key_MD, scale, query_id_N, key_id_M, tile=tile)
    positive_N = contrast.positive_sum() / contrast.positive_count_N
    negatives_N = contrast.negative_count_N
    log_sum_N = contrast.log_sum_exp("negatives")
    log_count_N = negatives_N.clamp(min=1).to(log_sum_N.dtype).log()
    return torch.where(negatives_N > 0, log_sum_N - log_count_N - positive_N, -torch.inf)


def global_contrast(log_mean_N: Tensor, log_average_N: Tensor, *, epsilon: float) -> Tensor:
    r"""Losses of queries whose denominators are moving averages $u_i$: $\log(1 + u_i / \epsilon)$, with the gradient of
    SogCLR's estimator.

    That gradient is $\nabla g_i / (\epsilon + u_i)$ (Yuan et al., "SogCLR", 2022, algorithm 1; Wei et al., "FastCLIP", 2024,
    algorithm 1): the one of InfoNCE where the average is replaced by the mean of the batch. With $\epsilon = 1 / (n - 1)$,
    the loss is InfoNCE over n samples, whose denominators are $1 + (n - 1) u_i$.

    Args:
        log_mean_N: $\log g_i$ of this batch, with a gradient; see `log_mean_negative`.
        log_average_N: $\log u_i$, already moved by this batch; no gradient passes through it.
        epsilon: positive.

    Returns:
        [N]; 0, with zero gradient, where nothing is known of the negatives.

    Example:
        >>> log_mean = torch.tensor([-1.0])
        >>> global_contrast(log_mean, log_mean, epsilon=1 / 9)  # InfoNCE of ten pairs
        tensor([1.4612])
    """
    has_negatives_N = log_mean_N > -torch.inf
    log_mean_N = log_mean_N.masked_fill(~has_negatives_N, 0)
    log_ratio_N = log_average_N.detach() - math.log(epsilon)
    value_N = torch.logaddexp(log_ratio_N, torch.zeros_like(log_ratio_N))
    weight_N = torch.where(has_negatives_N, (log_mean_N.detach() - math.log(epsilon) - value_N).exp(), 0)
    return value_N + weight_N * (log_mean_N - log_mean_N.detach())


class MovingNormalizers(nn.Module):
    r"""One moving average of mean negatives for every sample of a data set:
    $u_i \leftarrow (1 - \gamma) u_i + \gamma g_i$ (Wei et al., "FastCLIP", 2024, equation 2).

    Kept as logarithms in a buffer, so a resumed run restores them. The first mean of a sample is its first average.

    Args:
        samples: n, the size of the data set; with 0, nothing is kept, and every mean is a first one.
    """

    log_average_S: Tensor

    def __init__(self, samples: int):
        super().__init__()
        self.register_buffer("log_average_S", torch.full((samples,), -torch.inf))

    def resize(self, samples: int) -> None:
        """Forget all averages, and make room for those of `samples` samples."""
        self.log_average_S = self.log_average_S.new_full((samples,), -torch.inf)

    @torch.no_grad()
    def moved(self, index_N: Tensor, log_mean_N: Tensor, gamma: float) -> Tensor:
        """Return the averages of samples, as logarithms, as moved by their means in a batch; changes nothing.

        Args:
            index_N: int64 sample numbers.
            log_mean_N: their means, as logarithms; minus infinity for a sample without negatives, whose average stays.
            gamma: weight of the new means, in (0, 1].
        """
        if not len(self.log_average_S):
            return log_mean_N.clone()
        before_N = self.log_average_S[index_N].to(log_mean_N.dtype)
        log_kept = math.log1p(-gamma) if gamma < 1 else -math.inf
        moved_N = torch.logaddexp(before_N + log_kept, log_mean_N + math.log(gamma))
        moved_N = torch.where(before_N == -torch.inf, log_mean_N, moved_N)
        return torch.where(log_mean_N == -torch.inf, before_N, moved_N)

    @torch.no_grad()
    def move(self, index_B: Tensor, log_mean_B: Tensor, gamma: float) -> None:
        """Move the averages of a batch's samples. A sample that is in it more than once is moved by the mean of its means.

        Give the rows of all processes, on all processes in the same order.
        """
        if not len(self.log_average_S):
            return
        log_mean_B = _mean_by_sample(index_B, log_mean_B)
        self.log_average_S[index_B] = self.moved(index_B, log_mean_B, gamma).to(self.log_average_S.dtype)


def _mean_by_sample(index_B: Tensor, log_mean_B: Tensor) -> Tensor:
    """Return for every row the logarithm of the mean over the rows of its sample.

    Rows of the same sample get the same bits, so it does not matter which of them is written last; float64 sums by
    `index_put_` have a fixed order on every device.
    """
    sample_B = torch.searchsorted(index_B.sort().values, index_B)  # in [0, B), equal for rows of the same sample
    highest_B = torch.full_like(log_mean_B, -torch.inf).scatter_reduce(0, sample_B, log_mean_B, "amax")[sample_B]
    terms_B = (log_mean_B - highest_B).double().exp()  # nan where all means are log 0, replaced below
    zeros_B = torch.zeros_like(terms_B)
    total_B = zeros_B.index_put((sample_B,), terms_B, accumulate=True)[sample_B]
    rows_B = zeros_B.index_put((sample_B,), torch.ones_like(terms_B), accumulate=True)[sample_B]
    mean_B = highest_B + (total_B / rows_B).log().to(log_mean_B.dtype)
    return torch.where(highest_B == -torch.inf, log_mean_B, mean_B)
