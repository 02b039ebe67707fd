"""Modules equal their functions, with learned scales within bounds, queues in order, and draws by step."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmcl import losses
from mmcl.losses.modules import Loss

WIDTH = 5
IDS = torch.tensor([0, 1, 2, 0, 1, 3])


def rows(seed: int) -> Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, C = rows(0), rows(1), rows(2)
QUEUE = rows(3)


def full_queue() -> losses.MoCoLoss:
    module = losses.MoCoLoss(size=6, dim=WIDTH).double()
    module.queue.push(QUEUE, torch.arange(6) + 2)
    return module


def clusters() -> losses.SwAVLoss:
    module = losses.SwAVLoss(count=4, dim=WIDTH).double()
    with torch.no_grad():
        module.prototypes.weight.copy_(QUEUE[:4])
    return module


CASES: dict[str, tuple[Callable[[], Any], tuple[Any, ...], Callable[[], Tensor]]] = {
    "BYOLLoss": (losses.BYOLLoss, (A, B), lambda: losses.byol_loss(A, B)),
    "BarlowTwinsLoss": (
        lambda: losses.BarlowTwinsLoss(off_diagonal=0.1),
        (A, B),
        lambda: losses.barlow_twins_loss(A, B, off_diagonal=0.1),
    ),
    "ClipLoss": (
        lambda: losses.ClipLoss(temperature=0.1).double(),
        (A, B, IDS),
        lambda: losses.clip_loss(A, B, IDS, scale=torch.tensor(-math.log(0.1)).double().exp()),
    ),
    "ContrastivePairLoss": (
        lambda: losses.ContrastivePairLoss(margin=2.0),
        (A, IDS),
        lambda: losses.contrastive_pair_loss(A, IDS, margin=2.0),
    ),
    "DCLLoss": (losses.DCLLoss, (A, B), lambda: losses.dcl_loss(A, B, temperature=0.1)),
    "InfoNCELoss": (losses.InfoNCELoss, (A, A, IDS), lambda: losses.info_nce(A, A, IDS, temperature=0.1)),
    "LeJEPALoss": (
        lambda: losses.LeJEPALoss(weight=0.3, slices=5),
        (A, B, [C]),
        lambda: losses.lejepa_loss(A, B, [C], weight=0.3, slices=5),
    ),
    "MarginLoss": (
        lambda: losses.MarginLoss(negatives="all", beta=1.0),
        (A, IDS),
        lambda: losses.margin_loss(A, IDS, negatives="all", beta=1.0),
    ),
    "MoCoLoss": (
        full_queue,
        (A, B, IDS),
        lambda: losses.moco_loss(A, B, IDS, queue=QUEUE, queue_ids=torch.arange(6) + 2, temperature=0.2),
    ),
    "NTXentLoss": (
        lambda: losses.NTXentLoss(temperature=0.3, hardness=0.5, positive_prior=0.1),
        (A, B, IDS),
        lambda: losses.nt_xent(A, B, IDS, temperature=0.3, hardness=0.5, positive_prior=0.1),
    ),
    "SigLipLoss": (
        lambda: losses.SigLipLoss(bias=-3).double(),
        (A, B),
        lambda: losses.siglip_loss(A, B, scale=torch.tensor(-math.log(0.1)).double().exp(), bias=-3.0),
    ),
    "SimCSELoss": (
        lambda: losses.SimCSELoss(negative_log_weight=1.0),
        (A, B, None, C),
        lambda: losses.simcse_loss(A, B, negative=C, negative_log_weight=1.0),
    ),
    "SupConLoss": (
        lambda: losses.SupConLoss(positives="inside"),
        (A, IDS),
        lambda: losses.supcon_loss(A, IDS, temperature=0.1, positives="inside"),
    ),
    "SwAVLoss": (clusters, (A, B, [C]), lambda: losses.swav_loss(A, B, [C], prototypes=QUEUE[:4])),
    "TripletLoss": (
        lambda: losses.TripletLoss(miner="batch_hard"),
        (A, IDS),
        lambda: losses.triplet_loss(A, IDS, miner="batch_hard"),
    ),
    "VICRegLoss": (
        lambda: losses.VICRegLoss(covariance=3.0),
        (A, B),
        lambda: losses.vicreg_loss(A, B, covariance=3.0),
    ),
}


def test_every_module_is_among_them() -> None:
    modules = {name for name in losses.__all__ if inspect.isclass(x := getattr(losses, name)) and issubclass(x, nn.Module)}
    assert modules == CASES.keys()
    assert len(modules) == len(losses.LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_its_function(name: str) -> None:
    make, given, function = CASES[name]
    module = make()
    torch.testing.assert_close(module(*given), function(), rtol=1e-12, atol=0)
    assert isinstance(module, Loss)
    assert all(f"{option}=" in repr(module) for option in module.options)


@pytest.mark.parametrize("name", CASES)
def test_what_a_module_learns_is_in_its_state_dict(name: str) -> None:
    """A loaded copy continues as the original does."""
    make, given, _ = CASES[name]
    first, second = make(), make()
    for _ in range(2):
        first(*given)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(*given), second(*given))


def test_a_learned_scale_has_a_gradient_and_stays_within_its_bounds() -> None:
    criterion = losses.ClipLoss(max_scale=50.0)
    criterion(A.float(), B.float()).backward()
    assert criterion.log_scale.grad is not None
    for value, expected in ((100.0, math.log(50)), (-3.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            criterion.log_scale.fill_(value)
        criterion(A.float(), B.float())
        assert criterion.log_scale.item() == pytest.approx(expected)
    fixed = losses.ClipLoss(learnable=False)
    assert not list(filter(lambda p: p.requires_grad, fixed.parameters()))


def test_two_uses_of_a_scale_in_one_graph() -> None:
    """The bound is kept in place, which must not disturb a graph that is waiting for its backward pass."""
    criterion = losses.ClipLoss()
    (criterion(A.float(), B.float()) + criterion(B.float(), C.float())).backward()
    assert criterion.log_scale.grad is not None


def test_keys_join_the_queue_after_the_loss_and_in_training_alone() -> None:
    criterion = losses.MoCoLoss(size=8, dim=WIDTH, temperature=0.2).double()
    query = A.clone().requires_grad_()
    assert criterion(query, B).item() == 0  # no negatives yet
    loss = criterion(query, C)
    torch.testing.assert_close(loss, losses.moco_loss(query, C, queue=B, temperature=0.2))
    loss.backward()
    assert query.grad is not None
    assert query.grad.any()
    unit = nn.functional.normalize(torch.cat([B[4:], C]), dim=1)
    torch.testing.assert_close(criterion.queue.keys.sort(0).values, unit.sort(0).values)
    before = criterion.queue.keys.clone()
    criterion.eval()(query, A)
    assert torch.equal(criterion.queue.keys, before)


MIXED: dict[str, Any] = {"mixed": 7, "mixed_with_query": 3, "hardest": 4}


def test_mixtures_are_those_of_the_step() -> None:
    """A loaded copy continues with the same, and no two steps mix alike."""
    first, second = (losses.MoCoLoss(size=6, dim=WIDTH, **MIXED).double().eval() for _ in range(2))
    first.queue.push(QUEUE, torch.arange(6) + 2)
    for step in range(3):
        options: dict[str, Any] = {"queue_ids": torch.arange(6) + 2, "temperature": 0.2, "seed": step}
        torch.testing.assert_close(first(A, B, IDS), losses.moco_loss(A, B, IDS, queue=QUEUE, **options, **MIXED))
        first.step += 1
    assert len({first(A, B, IDS).item(), first.eval()(A, B, IDS).item()}) == 1
    second.load_state_dict(first.state_dict())
    pairs = [(first.train()(A, B, IDS).item(), second.train()(A, B, IDS).item()) for _ in range(3)]
    assert [ours for ours, _ in pairs] == [theirs for _, theirs in pairs]
    assert int(first.step) == 6


@pytest.mark.parametrize("make", [lambda: losses.TripletLoss(miner="distance_weighted"), losses.MarginLoss])
def test_draws_are_those_of_the_step(make: Callable[[], Any]) -> None:
    ids = torch.arange(60) % 20
    x = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0))
    first, second = make(), make()
    steps = [first(x, ids).item() for _ in range(4)]
    assert [second(x, ids).item() for _ in range(4)] == steps
    assert len(set(steps)) > 1
    assert first.eval()(x, ids).item() == first(x, ids).item()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("name", [name for name in CASES if name != "MoCoLoss"])  # how many keys there are is data
def test_the_compiler_takes_a_module_in_one_graph(name: str) -> None:
    make, given, function = CASES[name]
    compiled: Callable[..., Tensor] = torch.compile(make(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), function(), rtol=1e-12, atol=0)
