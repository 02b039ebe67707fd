"""Captions by weight: exact shares, and draws that remain uniform for the wrapped source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.derived.weighted_captions import WeightedCaptions
from mmcl.data.open import open_source
from mmcl.errors import UserError
from tests.data.test_loader import Toy, batches, rows, texts

WEIGHTS = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=5).filter(any)


def of_one_sample(count: int, weights: list[float]) -> WeightedCaptions:
    return WeightedCaptions(Toy(1, captions={0: tuple(map(str, range(count)))}), weights)


@given(WEIGHTS)
def test_the_shares_are_those_of_the_weights(weights: list[float]) -> None:
    source, draws = of_one_sample(len(weights), weights), (np.arange(400) + 0.5) / 400
    shown = np.bincount([int(source.caption(0, draw)) for draw in draws], minlength=len(weights))
    assert shown / 400 == pytest.approx(np.array(weights) / sum(weights), abs=1 / 400)


@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_at_every_draw_the_caption_is_that_of_a_slow_loop(weights: list[float], draw: float) -> None:
    ends = [sum(weights[: number + 1]) / sum(weights) for number in range(len(weights))]
    expected = next(number for number, end in enumerate(ends) if draw < end)
    shown = int(of_one_sample(len(weights), weights).caption(0, draw))
    assert weights[shown] > 0
    assert shown == expected or min(abs(draw - end) for end in ends) < 1e-8


def test_a_sample_with_fewer_captions_draws_among_its_own() -> None:
    source = of_one_sample(2, [1, 1, 98])
    assert [source.caption(0, draw) for draw in (0.0, 0.49, 0.51, 0.99)] == ["0", "0", "1", "1"]


def test_positives_and_negatives_go_with_the_caption(tmp_path: Path) -> None:
    lines = "".join(f'{{"image": "a.png", "caption": "c{n}", "positive": "p{n}", "negative": "n{n}"}}\n' for n in range(3))
    (tmp_path / "a.jsonl").write_text(lines)
    source = WeightedCaptions(open_source("table", str(tmp_path / "a.jsonl")), [2, 0, 1])
    for draw, number in ((0.0, 0), (0.6, 0), (0.7, 2), (0.999, 2)):
        shown = [source.view_text(view, 0, draw) for view in ("text", "positive", "negative")]
        assert shown == [f"c{number}", f"p{number}", f"n{number}"]


def test_what_else_a_source_does_with_a_draw_stays() -> None:
    plain = open_source("emoji", None, None, {"fold": "test"})
    weighted = WeightedCaptions(plain, [1.0])
    draws = np.linspace(0.001, 0.999, 50)
    assert [weighted.caption(7, draw) for draw in draws] == [plain.caption(7, draw) for draw in draws]


def test_batches_are_the_same_again_and_bad_samples_are_replaced() -> None:
    given = dict.fromkeys((3, 4), ("one", "two", "three")) | {5: ()}
    source = WeightedCaptions(Toy(captions=given), [0.0, 1.0])
    made = batches(source)
    for step in range(6):
        assert rows(made[step]) == rows(batches(source)[step])
        assert all(text.startswith("text") for text in texts(made[step].views["text"]))
    reasons = {bad.reason for step in range(6) for bad in made[step].bad_samples}
    assert reasons == {
        "toy/3: has 3 captions, and data.caption_weights 2",
        "toy/4: has 3 captions, and data.caption_weights 2",
        "toy/5: the caption is empty",
    }
    with pytest.raises(UserError, match="are 0 for all of its 1 caption"):
        of_one_sample(1, [0.0, 1.0]).caption(0, 0.5)


def test_the_fingerprint_has_the_weights() -> None:
    assert of_one_sample(2, [1, 2]).fingerprint != of_one_sample(2, [1, 3]).fingerprint
