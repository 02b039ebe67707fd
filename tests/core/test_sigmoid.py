"""sigmoid_loss against a slow loop in float64 and against open_clip."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.sigmoid import sigmoid_loss
from mmcl.core.tiled.pairs import TileShape
from tests.core.loops import sigmoid_loop

TILES: list[TileShape | None] = [None, (1, 1), (2, 3), (4, 5), (3, 100)]
IMAGE_ID, TEXT_ID = torch.tensor([0, 3, 0, 5, 2**62]), torch.tensor([5, 0, 0, 0, 3, 0, 7, 2**62])
TILE = pytest.mark.parametrize("tile", TILES, ids=str)


def unit(rng: torch.Generator, rows: int, dim: int = 4) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=rng, dtype=torch.float64), dim=1)


@TILE
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (100.0, -3.0), (100.0, 300.0)])
def test_equals_the_loop(rng: torch.Generator, tile: TileShape | None, scale: float, bias: float) -> None:
    image, text = unit(rng, 5), unit(rng, 8)
    expected = sigmoid_loop(image, text, IMAGE_ID, TEXT_ID, scale, bias)
    arguments: dict[str, Any] = {"image_id_N": IMAGE_ID, "text_id_M": TEXT_ID, "scale": scale, "bias": bias, "tile": tile}
    assert float(sigmoid_loss(image, text, **arguments, reduction="sum")) == pytest.approx(expected, rel=1e-12)
    assert float(sigmoid_loss(image, text, **arguments)) == pytest.approx(expected / 5, rel=1e-12)


@TILE
def test_gradients_of_rows_scale_and_bias(rng: torch.Generator, tile: TileShape | None) -> None:
    scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -2.0)]

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # Squared, so that the gradient that arrives is not 1.
        return sigmoid_loss(image, text, image_id_N=IMAGE_ID, text_id_M=TEXT_ID, scale=scale, bias=bias, tile=tile).square()

    assert torch.autograd.gradcheck(loss, (unit(rng, 5).requires_grad_(), unit(rng, 8).requires_grad_(), *scalars))


@pytest.mark.parametrize(("scale", "bias"), [(14.0, -8.0), (70.0, 9.0), (30.0, -70.0), (100.0, -3.0), (100.0, 300.0)])
def test_float32_tiles_are_close_to_float64(rng: torch.Generator, scale: float, bias: float) -> None:
    """With one exponential for the loss and its derivative, up to its limits, and beyond them with two."""
    wide = [x.requires_grad_() for x in (unit(rng, 5), unit(rng, 8), torch.tensor(scale).double(), torch.tensor(bias).double())]
    narrow = [x.detach().float().requires_grad_() for x in wide]
    sign = 2.0 * (IMAGE_ID[:, None] == TEXT_ID) - 1
    expected = -F.logsigmoid(sign * (wide[2] * wide[0] @ wide[1].T + wide[3])).sum() / 5
    got = sigmoid_loss(
        narrow[0], narrow[1], image_id_N=IMAGE_ID, text_id_M=TEXT_ID, scale=narrow[2], bias=narrow[3], tile=(2, 3)
    )
    grads = torch.autograd.grad(expected, wide)
    for mine, true in zip((got, *torch.autograd.grad(got, narrow)), (expected, *grads), strict=True):
        assert (mine.double() - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize("wanted", range(4))
def test_each_gradient_alone(rng: torch.Generator, wanted: int) -> None:
    inputs = [unit(rng, 5), unit(rng, 8), torch.tensor(5.0).double(), torch.tensor(-2.0).double()]
    found = []
    for tile in (None, (2, 3)):
        leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
        sigmoid_loss(
            leaves[0], leaves[1], image_id_N=IMAGE_ID, text_id_M=TEXT_ID, scale=leaves[2], bias=leaves[3], tile=tile
        ).backward()
        assert [x.grad is not None for x in leaves] == [i == wanted for i in range(4)]
        found.append(leaves[wanted].grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_without_gradient(rng: torch.Generator) -> None:
    image, text = unit(rng, 5).requires_grad_(), unit(rng, 8)
    arguments: dict[str, Any] = {"image_id_N": IMAGE_ID, "text_id_M": TEXT_ID, "scale": 5.0, "bias": -1.0, "tile": (2, 3)}
    with torch.no_grad():
        silent = sigmoid_loss(image, text, **arguments)
    assert not silent.requires_grad
    assert torch.equal(silent, sigmoid_loss(image, text, **arguments))


def test_is_the_loss_of_open_clip(rng: torch.Generator) -> None:
    theirs = pytest.importorskip("open_clip.loss").SigLipLoss()
    rows = [unit(rng, 40, 16).requires_grad_() for _ in range(2)]
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, -math.log(39)))
    expected = theirs(*rows, scale, bias)
    leaves = (*rows, scale, bias)
    grads = torch.autograd.grad(expected, leaves)
    for tile in (None, (16, 11)):
        id_N = torch.arange(40)
        got = sigmoid_loss(*rows, image_id_N=id_N, text_id_M=id_N, scale=scale, bias=bias, tile=tile)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.autograd.grad(got, leaves), grads, rtol=1e-10, atol=1e-14)


def test_parts_of_the_images_add_up(rng: torch.Generator) -> None:
    """The seam for processes: local images against all texts."""
    image, text = unit(rng, 5), unit(rng, 8)

    def total(part: slice) -> Tensor:
        return sigmoid_loss(
            image[part], text, image_id_N=IMAGE_ID[part], text_id_M=TEXT_ID, scale=9.0, bias=-2.0, reduction="sum"
        )

    parts = sum(total(part) for part in (slice(0, 2), slice(2, 2), slice(2, 5)))
    torch.testing.assert_close(parts, total(slice(None)), rtol=1e-13, atol=0)


@TILE
def test_confident_and_right_keeps_its_digits(tile: TileShape | None) -> None:
    """Two pairs of opposite vectors at scale 30: every term is log1p(e^-30), about 1e-13, where 30 - 30 would leave nothing."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    id_N = torch.arange(2)
    got = sigmoid_loss(rows, rows, image_id_N=id_N, text_id_M=id_N, scale=30.0, bias=0.0, reduction="sum", tile=tile)
    assert got.item() == pytest.approx(4 * math.log1p(math.exp(-30)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rows_stay_exact(rng: torch.Generator, dtype: torch.dtype) -> None:
    image, text = unit(rng, 5).to(dtype), unit(rng, 8).to(dtype)
    expected = sigmoid_loop(image, text, IMAGE_ID, TEXT_ID, 100.0, -10.0) / 5
    for tile in (None, (2, 3)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = sigmoid_loss(image, text, image_id_N=IMAGE_ID, text_id_M=TEXT_ID, scale=100.0, bias=-10.0, tile=tile)
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(expected, rel=1e-5)


def test_wrong_arguments_are_named() -> None:
    rows, id_N = torch.ones(4, 2), torch.arange(4)
    with pytest.raises(ValueError, match="ids"):
        sigmoid_loss(rows, rows, image_id_N=id_N[:3], text_id_M=id_N, scale=1.0, bias=0.0)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', not 'none'"):
        sigmoid_loss(rows, rows, image_id_N=id_N, text_id_M=id_N, scale=1.0, bias=0.0, reduction="none")  # type: ignore[arg-type]
