"""SogCLR: CLIP's loss over the whole data set, from moving averages of the denominators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcl.core.global_contrast import MovingNormalizers, global_contrast, log_mean_negative
from mmcl.errors import UserError
from mmcl.testing.toys import toy_method
from mmcl.types import Batch, Embeddings, RunFacts
from tests.methods.toy import random_rows
from tests.narrow import present

SAMPLES, ROWS, STEPS = 12, 5, 9
VIEWS = {"image": "text", "text": "image"}


def configured(samples: int = SAMPLES, total_steps: int = STEPS, **args: Any) -> Any:
    method = toy_method("sogclr", **args)
    method.configure(RunFacts(global_batch=ROWS, total_steps=total_steps, steps_per_epoch=2, samples=samples))
    return method


def embeddings_of(rows: dict[str, Tensor], ids: Tensor, index: Tensor) -> Embeddings:
    return Embeddings(rows, rows, ids, ids, all_index=index)


def gradients(method: Any, embeddings: Embeddings) -> dict[str, Tensor]:
    """The loss, and its gradients to rows and temperature."""
    leaves = {view: rows.detach().requires_grad_() for view, rows in embeddings.local.items()}
    method.zero_grad()
    ids, index = embeddings.ids, present(embeddings.all_index)
    loss = method.loss(embeddings_of(leaves, ids, index), Batch({}, ids, index)).loss
    loss.backward()
    return {"loss": loss.detach(), "scale": method.log_scale.grad} | {view: present(x.grad) for view, x in leaves.items()}


def test_with_all_samples_in_the_batch_and_gamma_1_it_is_clip() -> None:
    rows, ids = random_rows(("image", "text"), SAMPLES), torch.arange(SAMPLES)
    embeddings = embeddings_of(rows, ids, ids.flip(0))
    method = configured(gamma=1.0)
    for _ in range(2):
        expected = gradients(toy_method("clip"), embeddings)
        for name, value in gradients(method, embeddings).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)
        method.commit(embeddings, Batch({}, ids, ids))


class Loop:
    """Algorithm 1 of Wei et al. (2024), pair by pair, where rows of equal ids are one another's positives."""

    def __init__(self, scale: Tensor, epsilon: float):
        self.scale, self.epsilon = scale.detach().requires_grad_(), epsilon
        self.average: dict[tuple[str, int], float] = {}

    def means(self, rows: dict[str, Tensor], ids: list[int], query: str) -> list[Tensor]:
        keys, means = rows[VIEWS[query]], []
        for i, own in enumerate(ids):
            cosines = [rows[query][i] @ key for key in keys]
            positive = torch.stack([c for c, other in zip(cosines, ids, strict=True) if other == own]).mean()
            negatives = [(self.scale * (c - positive)).exp() for c, other in zip(cosines, ids, strict=True) if other != own]
            means.append(torch.stack(negatives).mean())
        return means

    def moved(self, query: str, sample: int, mean: float, gamma: float) -> float:
        before = self.average.get((query, sample))
        return mean if before is None else (1 - gamma) * before + gamma * mean

    def step(self, rows: dict[str, Tensor], ids: list[int], index: list[int], gamma: float) -> dict[str, Tensor]:
        leaves = {view: x.detach().requires_grad_() for view, x in rows.items()}
        estimator, value, moved = torch.zeros((), dtype=torch.float64), 0.0, {}
        for query in VIEWS:
            means = self.means(leaves, ids, query)
            for mean, sample in zip(means, index, strict=True):
                average = self.moved(query, sample, mean.item(), gamma)
                estimator = estimator + mean / (self.epsilon + average) / (2 * len(ids))
                value += math.log(1 + average / self.epsilon) / (2 * len(ids))
            for sample in set(index):
                own = [mean.item() for mean, other in zip(means, index, strict=True) if other == sample]
                moved[query, sample] = self.moved(query, sample, sum(own) / len(own), gamma)
        self.average |= moved
        found = torch.autograd.grad(estimator, [self.scale, *leaves.values()])
        return {"loss": torch.tensor(value, dtype=torch.float64), "scale": self.scale.detach() * found[0]} | dict(
            zip(leaves, found[1:], strict=True)
        )


@pytest.mark.parametrize(("gamma", "gamma_decay", "epsilon"), [(0.3, 0.0, None), (0.2, 0.5, 1e-8), (1.0, 0.0, 1e-3)])
def test_every_step_is_that_of_the_published_algorithm(gamma: float, gamma_decay: float, epsilon: float | None) -> None:
    """Batches of the data in turn, with equal ids, and a sample twice in some of them."""
    method = configured(temperature=0.2, gamma=gamma, gamma_decay=gamma_decay, epsilon=epsilon)
    loop = Loop(method.logit_scale, epsilon or 1 / (SAMPLES - 1))
    rng = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        index = (torch.arange(ROWS) * 2 + 3 * step) % SAMPLES if step % 3 else torch.tensor([4, 1, 4, 9, 0])
        ids = index // 2 if step % 2 else index
        rows = {view: F.normalize(torch.randn(ROWS, 6, generator=rng, dtype=torch.float64), dim=1) for view in VIEWS}
        progress = min(step / round(gamma_decay * STEPS), 1) if gamma_decay else 1
        now = (1 + math.cos(math.pi * progress)) / 2 * (1 - gamma) + gamma
        embeddings = embeddings_of(rows, ids, index)
        ours, expected = gradients(method, embeddings), loop.step(rows, ids.tolist(), index.tolist(), now)
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-11, atol=1e-13, msg=f"{name} in step {step}")
        method.commit(embeddings, Batch({}, ids, index))
        for (view, sample), average in loop.average.items():
            found = method.normalizers[view].log_average_S[sample].item()
            assert found == pytest.approx(math.log(average), rel=1e-11)


def test_the_weight_of_a_batch_falls_with_the_step_alone() -> None:
    method = configured(total_steps=20, gamma=0.2, gamma_decay=0.5)
    rows, index = random_rows(("image", "text"), ROWS), torch.arange(ROWS)
    weights = []
    for _ in range(12):
        weights.append(method.current_gamma)
        method.commit(embeddings_of(rows, index, index), Batch({}, index, index))
    assert weights == sorted(weights, reverse=True)
    assert (weights[0], weights[5], weights[10:]) == (1, pytest.approx(0.6), [0.2, 0.2])


def test_rows_of_a_sample_move_its_average_by_their_mean() -> None:
    normalizers, log = MovingNormalizers(4), math.log
    index, means = torch.tensor([2, 0, 2, 2]), torch.tensor([3.0, 5.0, 4.0, 8.0])
    normalizers.move(index, means.log(), 0.5)
    torch.testing.assert_close(normalizers.log_average_S, torch.tensor([log(5), -math.inf, log(5), -math.inf]))
    normalizers.move(index, means.log() - 200, 0.5)  # e^-200 is 0 in float32
    torch.testing.assert_close(normalizers.log_average_S, torch.tensor([log(2.5), -math.inf, log(2.5), -math.inf]))
    moved = normalizers.log_average_S.clone()
    normalizers.move(torch.tensor([0, 1, 2]), torch.full((3,), -torch.inf), 0.5)
    assert torch.equal(normalizers.log_average_S, moved), "rows without negatives say nothing of them"


def test_a_batch_without_negatives_has_no_loss_and_a_usable_gradient() -> None:
    method, rows = configured(), random_rows(("image", "text"), 3)
    found = gradients(method, embeddings_of(rows, torch.zeros(3, dtype=torch.int64), torch.arange(3)))
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found.values())


@pytest.mark.parametrize("epsilon", [1e-14, 1e-3])
@pytest.mark.parametrize("past", [-200.0, 0.0, 200.0])
def test_float32_holds_at_the_largest_scale(past: float, epsilon: float) -> None:
    """Cosines of 1 and -1 at scale 100; the weight of a row is at most 1 / gamma, whatever its average was."""
    sign = torch.tensor([[1.0], [-1.0], [1.0]])
    query, key = (sign * torch.eye(4)[:1]).requires_grad_(), -sign * torch.eye(4)[:1]
    ids = torch.arange(3)
    log_mean = log_mean_negative(query, key, query_id_N=ids, key_id_M=ids, scale=100.0)
    normalizers = MovingNormalizers(3)
    normalizers.log_average_S.fill_(past)
    loss = global_contrast(log_mean, normalizers.moved(ids, log_mean, 0.25), epsilon=epsilon)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert present(query.grad).isfinite().all()
    assert present(query.grad).norm(dim=1).max() <= 4 * 200 + 1e-3


def test_the_first_loss_is_that_of_the_whole_data() -> None:
    assert configured(samples=1000).describe(ROWS).first_loss == pytest.approx(math.log(1000))
    assert configured(image_weight=1.0).describe(ROWS).first_loss is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"gamma": 0.0}, r"^gamma is 0: give a number above 0, up to 1$"),
        ({"gamma": 1.5}, r"^gamma is 1\.5: "),
        ({"gamma": math.nan}, r"^gamma is nan: "),
        ({"gamma_decay": -0.1}, r"^gamma_decay is -0\.1: give a share of the run, from 0 to 1$"),
        ({"epsilon": 0.0}, r"^epsilon is 0: give a number above 0$"),
    ],
)
def test_numbers_out_of_range_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_method("sogclr", **args)


PUBLISHED = [
    (4.036345764761169, 2.162216763400894, 0.29049765770243785),
    (15.936813501447551, 11.218122318370973, 16.581707391296426),
    (6.791740666738617, 5.849274486507915, 1.1312622764564695),
]
PUBLISHED_AVERAGES = {
    "image": [
        1655357.344198784,
        2.2441793418425626,
        0.6736544888418056,
        1.4376758456090333,
        238135.35408919843,
        267.1033476058508,
    ],
    "text": [
        8335.599853974329,
        1.4892624329985478,
        1.3946282457688404,
        1.3224131204489993,
        105654.98787986835,
        228.26123067724805,
    ],
}


def test_it_is_the_published_code() -> None:
    """Half of `FastCLIPLoss(6, 0.3, eps=1e-14, multiply_tau=False)` of FastCLIP's repository (efd89d5), at scale 10: norms
    of the gradients to rows, gradients to the log-scale, and averages, in float64."""
    method = configured(samples=6, gamma=0.3, gamma_decay=0.0, epsilon=1e-14)
    with torch.no_grad():
        method.log_scale.fill_(math.log(10))
    number = torch.arange(24, dtype=torch.float64).reshape(4, 6) + 1
    for step, index in enumerate(torch.tensor([[0, 1, 2, 3], [4, 2, 5, 0], [3, 0, 1, 2]])):
        rows = {view: F.normalize(torch.sin((step + 1) * (k + 1) * number), dim=1) for k, view in enumerate(VIEWS)}
        embeddings = embeddings_of(rows, index, index)
        found = gradients(method, embeddings)
        norms = float(found["image"].norm()), float(found["text"].norm())
        assert (*norms, float(found["scale"])) == pytest.approx(PUBLISHED[step], rel=1e-11)
        method.commit(embeddings, Batch({}, index, index))
    for view, averages in PUBLISHED_AVERAGES.items():
        assert method.normalizers[view].log_average_S.exp().tolist() == pytest.approx(averages, rel=1e-11)
