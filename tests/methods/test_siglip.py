"""Properties of SigLIP beyond the contract."""

from __future__ import annotations

import math

import pytest
import torch

from mmcl.methods.siglip import SigLIP
from mmcl.testing.toys import toy_method
from mmcl.types import RunFacts
from tests.core.loops import sigmoid_loop
from tests.methods.test_clip_and_simclr import batch_of, random_embeddings


def siglip(**arguments: float) -> SigLIP:
    return SigLIP(toy_method("siglip").towers, **arguments).double()


def facts(global_batch: int) -> RunFacts:
    return RunFacts(global_batch=global_batch, total_steps=10, steps_per_epoch=5, samples=20)


@pytest.mark.parametrize("ids", [torch.arange(6), torch.tensor([0, 1, 0, 2, 1, 0])])
def test_is_the_sum_over_pairs_by_the_batch(ids: torch.Tensor) -> None:
    embeddings = random_embeddings(("image", "text"), 6, ids)
    expected = sigmoid_loop(embeddings.all["image"], embeddings.all["text"], ids, ids, 4.0, -2.0) / 6
    method = siglip(temperature=0.25, bias=-2.0)
    assert method.loss(embeddings, batch_of(embeddings)).loss.item() == pytest.approx(expected, rel=1e-6)


def test_starts_at_the_published_scale_and_at_the_prior_of_the_batch() -> None:
    method = siglip()
    assert method.logit_scale.item() == pytest.approx(10.0)
    assert method.logit_bias.item() == -10.0
    method.configure(facts(512))
    assert method.logit_bias.sigmoid().item() == pytest.approx(1 / 512)
    method.configure(facts(1))
    assert method.logit_bias.item() == 0


def test_a_bias_that_is_given_stays() -> None:
    method = siglip(bias=0.0)
    method.configure(facts(512))
    assert method.logit_bias.item() == 0


def test_the_scale_is_clamped_only_if_asked_for() -> None:
    embeddings = random_embeddings(("image", "text"), 2)
    for method, expected in ((siglip(), math.exp(9.0)), (siglip(max_scale=100.0), 100.0)):
        with torch.no_grad():
            method.log_scale.fill_(9.0)
        method.commit(embeddings, batch_of(embeddings))
        assert method.logit_scale.item() == pytest.approx(expected)
