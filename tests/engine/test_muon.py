"""Muon against timm, and on matrices that are sharded over processes."""

from __future__ import annotations

import pytest
import torch
from timm.optim import Muon as TimmMuon
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from mmcl.engine.muon import COEFFICIENTS, Muon, orthogonalized
from tests.distributed.harness import run_processes
from tests.narrow import of_type


def _pretend(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)


SHAPES = [(4, 4), (4, 6), (6, 4), (5, 600), (64, 3, 7, 7), (6, 4, 3, 3), (8, 4, 5), (4, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_moves_as_timms_does(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original library, which always computes in bfloat16, where it does not leave a matrix to AdamW; bit by bit."""
    _pretend(monkeypatch, has_bf16=True)
    start = torch.randn(shape, dtype=dtype)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        TimmMuon([theirs], lr=0.02, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        ours.grad = torch.randn(shape, dtype=dtype)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (3, 7), (4, 1000), (16, 1, 7, 7)])
def test_a_matrix_of_any_shape_is_orthogonalized(
    shape: tuple[int, ...], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, has_bf16)
    matrix = torch.randn(shape)
    found = orthogonalized(matrix)
    assert found.shape == shape
    assert found.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
    left, singular, right = torch.linalg.svd(found.flatten(1).double(), full_matrices=False)
    assert ((singular > 0.5) & (singular < 1.4)).all()
    truth = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    torch.testing.assert_close(left @ right, truth.U @ truth.Vh, rtol=0, atol=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_processor_without_bf16_iterates_in_float32(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the iteration in float64 as written in the paper: X <- a X + (b X X' + c (X X')^2) X, from X over its norm."""
    _pretend(monkeypatch, has_bf16=False)
    matrix = torch.randn(shape)
    x = matrix.double().flatten(1) / matrix.double().norm()
    for a, b, c in COEFFICIENTS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalized(matrix).double().flatten(1), x, rtol=0, atol=1e-4)


def test_what_has_no_gradient_stays() -> None:
    """Nor does the weight decay reach it; a gradient of zeros moves nothing, whatever the norm that it is divided by."""
    frozen, still = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    still.grad = torch.zeros(4, 4)
    Muon([frozen, still], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(frozen, torch.ones(4, 4))
    assert torch.equal(still, torch.full((4, 4), 0.5))


def of_shares(rank: int, world: int) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The factors of matrices cut by rows and by columns, put together again, and the shapes of this process's shares."""
    mesh = init_device_mesh("cpu", (world,))
    cut = [(matrix, (Shard(dim),)) for matrix in matrices() for dim in (0, 1)]
    found = [of_type(DTensor, orthogonalized(distribute_tensor(matrix, mesh, placements))) for matrix, placements in cut]
    assert [factor.placements for factor in found] == [placements for _, placements in cut]
    return [(factor.full_tensor(), tuple(factor.to_local().shape)) for factor in found]


def matrices() -> list[Tensor]:
    """Among them such as do not divide by the number of processes, and fewer rows than processes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in [*SHAPES, (2, 9), (7, 5), (37, 101), (1, 1)]]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_factor_of_a_spread_matrix_is_that_of_the_whole_bit_by_bit(world: int) -> None:
    expected = [orthogonalized(matrix) for matrix in matrices() for _ in (0, 1)]
    ranks = run_processes(world, of_shares)
    for found in ranks:
        assert all(torch.equal(ours, whole) for (ours, _), whole in zip(found, expected, strict=True))
    for number, whole in enumerate(expected):
        dim = number % 2
        assert sum(found[number][1][dim] for found in ranks) == whole.shape[dim], "a process keeps its share alone"
