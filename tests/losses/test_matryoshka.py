"""Losses over prefixes: the sum of a loop, that of sentence-transformers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl import losses
from mmcl.errors import UserError
from mmcl.losses import LOSSES, matryoshka
from mmcl.testing.losses import toy_loss_arguments

WIDTH, DIMS, WEIGHTS = 6, [2, 5], [1.0, 2.0, 5.0]


def rows(seed: int, count: int = 7) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def by_loop(loss: Callable[..., Tensor], given: dict[str, Any], *, normalize: bool) -> Tensor:
    """Every matrix cut by hand, one width after the other."""

    def cut(value: Any, dim: int) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2 or dim == WIDTH:
            return value
        kept = value[:, :dim]
        return kept / kept.square().sum(1, keepdim=True).sqrt() if normalize else kept

    total = torch.zeros((), dtype=torch.float64)
    for dim, weight in zip([*DIMS, WIDTH], WEIGHTS, strict=True):
        total = total + weight * loss(**{name: cut(value, dim) for name, value in given.items()})
    return total / sum(WEIGHTS)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_weighted_mean_over_its_prefixes(name: str, normalize: bool) -> None:
    """Queues and prototypes, which are keyword arguments, are cut, too."""
    entry, given = LOSSES.entry(name), toy_loss_arguments(LOSSES.entry(name))
    leaves = {key: given[key].detach().requires_grad_() for key in entry.rows if given.get(key) is not None}
    given |= leaves
    found = matryoshka(LOSSES[name], dims=DIMS, weights=WEIGHTS, normalize=normalize)(**given)
    expected = by_loop(LOSSES[name], given, normalize=normalize)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    gradients = [
        torch.autograd.grad(value, list(leaves.values()), materialize_grads=True, allow_unused=True)
        for value in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_it_is_the_loss_of_sentence_transformers() -> None:
    """Theirs is a sum and not a mean, and names the full width among the others."""
    theirs = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

    class Given(nn.Module):
        """A model whose embeddings are its inputs."""

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return dict(features)

        def get_embedding_dimension(self) -> int:
            return WIDTH

        _get_untruncated_embedding_dimension = get_embedding_dimension  # which is asked from version 6.3 on

    model = Given()
    inner = theirs.MultipleNegativesRankingLoss(model, scale=20.0)
    outer = theirs.MatryoshkaLoss(model, inner, [*DIMS, WIDTH], WEIGHTS)
    a, b = rows(0), rows(1)
    expected = outer([{"sentence_embedding": a}, {"sentence_embedding": b}], labels=torch.zeros(0)) / sum(WEIGHTS)
    found = matryoshka(losses.info_nce, dims=DIMS, weights=WEIGHTS)(a, b, temperature=1 / 20)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    both = [torch.autograd.grad(value, [a, b]) for value in (found, expected)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-13)


def test_one_tensor_given_twice_stays_one() -> None:
    """`info_nce` takes rows that are compared with themselves for queries that are no keys of their own."""
    z, ids = rows(0), torch.arange(7) % 3
    found = matryoshka(losses.info_nce, dims=[3])(z, z, ids, temperature=0.2)
    prefix = F.normalize(z[:, :3], dim=1)
    expected = [losses.supcon_loss(one, ids, temperature=0.2, positives="outside") for one in (prefix, z)]
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-12, atol=0)


def test_sequences_of_rows_are_cut() -> None:
    a, b, small, prototypes = rows(0), rows(1), [rows(2), rows(3)], rows(4)
    found = matryoshka(losses.swav_loss, dims=[3])(a, b, small, prototypes=prototypes)
    cut = [losses.swav_loss(a[:, :k], b[:, :k], [x[:, :k] for x in small], prototypes=prototypes[:, :k]) for k in (3, WIDTH)]
    torch.testing.assert_close(found, torch.stack(cut).mean(), rtol=1e-12, atol=0)


def test_a_module_keeps_its_parameters_and_its_shape() -> None:
    criterion = matryoshka(losses.ClipLoss(), dims=DIMS)
    assert [name for name, _ in criterion.named_parameters()] == ["loss.log_scale"]
    criterion(rows(0).float(), rows(1).float()).backward()
    assert next(criterion.parameters()).grad is not None
    assert "dims=[2, 5]" in repr(criterion)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a queue": (
        lambda: matryoshka(losses.MoCoLoss(size=4, dim=WIDTH), dims=[2]),
        r"MoCoLoss keeps rows of the full width \(queue\.key_KD\): wrap the function",
    ),
    "prototypes": (lambda: matryoshka(losses.SwAVLoss(count=4, dim=WIDTH), dims=[2]), "SwAVLoss keeps rows of the full width"),
    "no widths": (lambda: matryoshka(losses.clip_loss, dims=[]), r"dims is \[\]: give a list"),
    "as wide as the rows": (
        lambda: matryoshka(losses.nt_xent, dims=[6])(rows(0), rows(1), temperature=1),
        "dims has 6, and the",
    ),
    "two widths": (
        lambda: matryoshka(losses.nt_xent, dims=[2])(rows(0), rows(1)[:, :4], temperature=1),
        "the arguments have widths of 4, 6: pass",
    ),
    "no rows": (lambda: matryoshka(losses.nt_xent, dims=[2])(1, 2, temperature=1), "the arguments have no rows: pass tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_cut_is_named(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        call()
