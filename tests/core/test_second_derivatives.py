"""Second derivatives and the transforms of torch.func are exact, in one piece and in tiles."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mmcl.core
from mmcl.core.distillation import TeacherRows, distillation_loss, sigmoid_distillation_loss
from mmcl.core.info_nce import info_nce, symmetric_info_nce
from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.pairs import TileShape
from tests.core.test_info_nce import OPTION, call, case, unit

Loss = Callable[..., Tensor]
TILE = pytest.mark.parametrize("tile", [None, (2, 3)], ids=str)


def two_views(z: Tensor, scale: Tensor, tile: TileShape | None = None) -> Tensor:
    row = torch.arange(len(z))
    return info_nce(z, z, query_id_N=row // 2, key_id_M=row // 2, query_row_N=row, key_row_M=row, scale=scale, tile=tile)


def one_way(query: Tensor, key: Tensor, scale: Tensor, tile: TileShape | None = None) -> Tensor:
    return info_nce(query, key, query_id_N=torch.arange(len(query)), key_id_M=torch.arange(len(key)), scale=scale, tile=tile)


def both_ways(a: Tensor, b: Tensor, scale: Tensor, tile: TileShape | None = None) -> Tensor:
    return symmetric_info_nce(a, b, id_N=torch.arange(len(a)), scale=scale, tile=tile)


def every_pair(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile: TileShape | None = None) -> Tensor:
    id_N = torch.arange(len(image))
    return sigmoid_loss(image, text, image_id_N=id_N, text_id_M=id_N, scale=scale, bias=bias, tile=tile)


def teacher_of(query: Tensor, key: Tensor) -> TeacherRows:
    """Computed, because the transforms of torch.func forbid random numbers."""
    numbers = torch.arange(5 * len(query) + 5 * len(key), dtype=query.dtype)
    a, b = F.normalize((numbers**2).sin().view(-1, 5), dim=1).split([len(query), len(key)])
    return TeacherRows(a, b, scale=7.0, bias=-1.0)


def taught(query: Tensor, key: Tensor, scale: Tensor, tile: TileShape | None = None) -> Tensor:
    return distillation_loss(query, key, teachers=[teacher_of(query, key)], scale=scale, tile=tile)


def taught_every_pair(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile: TileShape | None = None) -> Tensor:
    return sigmoid_distillation_loss(image, text, teachers=[teacher_of(image, text)], scale=scale, bias=bias, tile=tile)


def plain_two_views(z: Tensor, scale: Tensor) -> Tensor:
    logits = (scale * z @ z.T).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)) ^ 1)


def plain_one_way(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * query @ key.T, torch.arange(len(query)))


def plain_both_ways(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return plain_one_way(a, b, scale) + plain_one_way(b, a, scale)


def plain_every_pair(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


def plain_taught(query: Tensor, key: Tensor, scale: Tensor) -> Tensor:
    a, b, of_teacher, _ = teacher_of(query, key)
    student, teacher = (scale * query @ key.T).log_softmax(1), (of_teacher * a @ b.T).log_softmax(1)
    return (teacher.exp() * (teacher - student)).sum(1).mean()


def plain_taught_every_pair(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    a, b, of_teacher, its_bias = teacher_of(image, text)
    targets = (of_teacher * a @ b.T + its_bias).sigmoid()
    logits = scale * image @ text.T + bias
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(image)


LOSSES: dict[str, tuple[Loss, Loss, int, int]] = {
    "two views": (two_views, plain_two_views, 1, 1),
    "one way": (one_way, plain_one_way, 2, 1),
    "both ways": (both_ways, plain_both_ways, 2, 1),
    "every pair": (every_pair, plain_every_pair, 2, 2),
    "taught": (taught, plain_taught, 2, 1),
    "taught every pair": (taught_every_pair, plain_taught_every_pair, 2, 2),
}
"""Ours, the same in PyTorch's own operations, how many arguments are rows and how many scalars."""
LOSS = pytest.mark.parametrize("name", LOSSES)
# PyTorch's own, where it first needs a forward-mode derivative.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


def arguments(name: str, rng: torch.Generator, rows: int, dim: int = 3) -> list[Tensor]:
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (5.0, -2.0)]
    found = [unit(rng, rows, dim) for _ in range(LOSSES[name][2])] + scalars[: LOSSES[name][3]]
    return [x.requires_grad_() for x in found]


def penalized(loss: Loss, leaves: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """The gradients of a loss with a penalty on its gradients."""
    value = loss(*leaves, **options)
    grads = torch.autograd.grad(value, leaves, create_graph=True)
    return torch.autograd.grad(value + sum(grad.square().sum() for grad in grads), leaves)


@LOSS
@TILE
def test_second_derivatives_pass_the_numerical_check(rng: torch.Generator, name: str, tile: TileShape | None) -> None:
    leaves = arguments(name, rng, 4)
    assert torch.autograd.gradgradcheck(lambda *x: LOSSES[name][0](*x, tile=tile), leaves, fast_mode=True)


@pytest.mark.parametrize("tile", [None, pytest.param((2, 3), marks=pytest.mark.long)], ids=str)
@OPTION
def test_so_do_those_of_every_option(rng: torch.Generator, options: dict[str, Any], tile: TileShape | None) -> None:
    rows, scale = case(rng), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    inputs = tuple(rows[name].requires_grad_() for name in ("query", "key", "own_key"))

    def loss(query: Tensor, key: Tensor, own_key: Tensor, scale: Tensor) -> Tensor:
        return call({**rows, "query": query, "key": key, "own_key": own_key}, scale, tile, **options)

    assert torch.autograd.gradgradcheck(loss, (*inputs, scale), fast_mode=True)


@LOSS
@pytest.mark.parametrize("rows", [8, 1100])
def test_a_gradient_penalty_is_that_of_plain_autograd(rng: torch.Generator, name: str, rows: int) -> None:
    """At a size that is done in one piece, and at one that is done in tiles."""
    leaves = arguments(name, rng, rows, 16)
    expected = penalized(LOSSES[name][1], leaves)
    torch.testing.assert_close(penalized(LOSSES[name][0], leaves), expected, rtol=1e-10, atol=1e-14)


@LOSS
def test_a_penalty_of_float32_rows_under_autocast_is_close(rng: torch.Generator, name: str) -> None:
    wide = arguments(name, rng, 24, 16)
    narrow = [x.detach().float().requires_grad_() for x in wide]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = penalized(LOSSES[name][0], narrow, tile=(7, 9))
    for mine, true in zip(found, penalized(LOSSES[name][1], wide), strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - true).norm() <= 1e-4 * true.norm()


@LOSS
@pytest.mark.parametrize("wanted", [0, 1])
def test_each_argument_may_be_without_gradient(rng: torch.Generator, name: str, wanted: int) -> None:
    leaves = arguments(name, rng, 6)
    for i, x in enumerate(leaves):
        x.requires_grad_(i == wanted)

    def penalty(loss: Loss, **options: Any) -> Tensor:
        (grad,) = torch.autograd.grad(loss(*leaves, **options), leaves[wanted], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaves[wanted])[0]

    expected = penalty(LOSSES[name][1])
    for tile in (None, (2, 3)):
        torch.testing.assert_close(penalty(LOSSES[name][0], tile=tile), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.long
@LOSS
def test_third_derivatives_too(rng: torch.Generator, name: str) -> None:
    leaves = arguments(name, rng, 4)

    def third(loss: Loss, **options: Any) -> tuple[Tensor, ...]:
        value = loss(*leaves, **options)
        for _ in range(2):
            value = sum(g.square().sum() for g in torch.autograd.grad(value, leaves, create_graph=True))  # type: ignore[assignment]
        return torch.autograd.grad(value, leaves)

    expected = third(LOSSES[name][1])
    for tile in (None, (2, 3)):
        torch.testing.assert_close(third(LOSSES[name][0], tile=tile), expected, rtol=1e-9, atol=1e-10)


@LOSS
def test_rows_that_stand_alone_have_no_second_derivative(rng: torch.Generator, name: str) -> None:
    """No row, or one: sums over nothing, of which minus infinity must not leak into a gradient."""
    for rows in (0, 1):
        leaves = arguments(name, rng, rows)
        for tile in (None, (2, 3)):
            assert all(grad.isfinite().all() for grad in penalized(LOSSES[name][0], leaves, tile=tile))


TRANSFORMS: dict[str, Callable[[Loss, list[Tensor]], Any]] = {
    "grad": lambda f, x: torch.func.grad(f, tuple(range(len(x))))(*x),
    "grad of grad": lambda f, x: torch.func.grad(lambda y: torch.func.grad(f)(y, *x[1:]).square().sum())(x[0]),
    "hessian": lambda f, x: torch.func.hessian(f)(*x),
    "jvp": lambda f, x: torch.func.jvp(f, tuple(x), tuple(torch.ones_like(y) for y in x)),
    "vmap": lambda f, x: torch.func.vmap(lambda s: f(*x[:-1], s * x[-1]))(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
    "vmap of grad": lambda f, x: torch.func.vmap(lambda y: torch.func.grad(f)(y, *x[1:]))(torch.stack([x[0], -x[0]])),
    "hessian, vectorized": lambda f, x: torch.autograd.functional.hessian(lambda y: f(y, *x[1:]), x[0], vectorize=True),
}


@FORWARD_MODE
@pytest.mark.parametrize(
    "name", [name if name == "every pair" else pytest.param(name, marks=pytest.mark.long) for name in LOSSES]
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by the forward mode of torch 2.10 and 2.11 itself
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_of_torch_func(rng: torch.Generator, name: str, transform: Callable[..., Any]) -> None:
    ours, plain, *_ = LOSSES[name]
    x = [x.detach() for x in arguments(name, rng, 6)]
    expected = transform(plain, x)
    for tile in (None, (2, 3)):
        torch.testing.assert_close(transform(lambda *y: ours(*y, tile=tile), x), expected, rtol=1e-10, atol=1e-12)  # noqa: B023


@FORWARD_MODE
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by the forward mode of torch 2.10 and 2.11 itself
def test_masks_are_followed_through_nested_transforms(rng: torch.Generator) -> None:
    rows = {name: value for name, value in case(rng).items() if name not in ("valid", "weight")}

    def loss(tile: TileShape | None) -> Loss:
        return lambda query: call({**rows, "query": query}, 3.0, tile, denominator="negatives", positives="inside")

    expected = torch.func.hessian(loss(None))(rows["query"])
    torch.testing.assert_close(torch.func.hessian(loss((2, 3)))(rows["query"]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.long
def test_the_matrix_of_all_pairs_never_exists() -> None:
    """In one piece, 4096 x 4096 pairs take 64 MB for every one of the dozen matrices that a penalty keeps."""
    script = """
import resource, torch
from tests.core.test_second_derivatives import both_ways, every_pair, penalized
torch.set_num_threads(1)
def rows(n):
    return [torch.nn.functional.normalize(torch.randn(n, 8), dim=1).requires_grad_() for _ in range(2)]
scalars = [torch.tensor(x, requires_grad=True) for x in (14.0, -7.0)]
def both(n):
    penalized(both_ways, [*rows(n), scalars[0]], tile=(512, 512))
    penalized(every_pair, [*rows(n), *scalars], tile=(512, 512))
both(512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
both(4096)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    finished = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    assert int(finished.stdout) < 64


def test_every_backward_pass_of_its_own_is_known_here() -> None:
    """Whoever adds one adds its second derivatives: `gradients` for a recomputation, and an entry above."""
    for module in pkgutil.walk_packages(mmcl.core.__path__, "mmcl.core."):
        importlib.import_module(module.name)
    found = {f.__name__ for f in torch.autograd.Function.__subclasses__() if f.__module__.startswith("mmcl.")}
    in_processes = {"_AllGatherRows", "_SumOfLocalRows"}  # in tests/distributed
    assert found == {"_Recomputed", "_PositiveDotSum", "_TiledLogSumExp", "_TiledSigmoid"} | in_processes
