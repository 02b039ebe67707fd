"""Figures are valid images with the expected contents, whatever the captions. Warnings are errors here."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmcl.drawing import PALETTE, RIGHT, WRONG, wrapped
from mmcl.evaluate import Metric
from mmcl.evaluate.reporting.examples import Examples, Hit, Query
from mmcl.evaluate.reporting.figures import change_figure, example_figure, loss_curve, scatter, score_chart
from mmcl.evaluate.reporting.thumbnails import data_uri
from mmcl.testing.patterns import pattern

AWKWARD = ["猫が笑う", "قطة", "बिल्ली", "cost $5 or $6_x^$", "a\nb", "", "<script>" * 30, "\U0001f600 \ud7ff", "\ud800\x1b[2J"]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def has_color(png: bytes, color: str) -> bool:
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(png) == wanted).all(axis=2).any())


def query(text: str, image: str | None, hits: list[str], hit_image: str | None, *, right: bool, group: str = "best") -> Query:
    found = [Hit(rank=rank, score=0.5, is_right=right, text=hit, image=hit_image) for rank, hit in enumerate(hits, 1)]
    answer = None if right else Hit(rank=99.5, score=-0.1, is_right=True, text="the answer", image=hit_image)
    return Query(group=group, text=text, image=image, hits=tuple(found), answer=answer)


def examples(*queries: Query) -> Examples:
    return Examples(
        evaluator="retrieval", data="猫 $x$", model="mine", title="text to image", candidates=9, sampled=9, queries=queries
    )


@pytest.mark.parametrize("right", [True, False])
def test_right_hits_are_green_and_wrong_ones_red(right: bool) -> None:
    gray = data_uri(Image.fromarray(pattern(0)).convert("L"))
    hits = [replace(query("a", None, ["b"] * 5, gray, right=right), answer=None)]
    texts = [replace(query("a", gray, ["b"] * 5, None, right=right), answer=None)]
    for png in (
        example_figure([examples(*hits)]),
        example_figure([examples(*texts)]),
        change_figure("t", ("a", "b"), [(hits[0], hits[0])]),
    ):
        assert has_color(png, RIGHT) == right
        assert has_color(png, WRONG) == (not right)


def test_no_caption_breaks_a_figure() -> None:
    image = data_uri(Image.fromarray(pattern(0)))
    by_text = [query(text, None, [text] * 5, image, right=False) for text in AWKWARD]
    by_image = [query(text, image, AWKWARD[:5], None, right=False) for text in AWKWARD]
    points = scatter(np.random.default_rng(0).normal(size=(8, 2)), np.arange(8), AWKWARD, title="猫")
    changes = change_figure(AWKWARD[0], ("runs/$a$", "猫" * 60), [(one, one) for one in by_text])
    for png in (points, changes, example_figure([examples(*by_text), examples(*by_image)]), example_figure([])):
        assert pixels(png).size > 0


def test_wide_letters_are_wrapped_at_half_as_many() -> None:
    assert max(map(len, wrapped("猫" * 100, 20, 4).splitlines())) <= 12
    assert wrapped("", 5, 2) == ""
    assert wrapped("a" * 100, 10, 2).endswith("…")


def test_a_chart_has_at_most_four_scores() -> None:
    def metrics(count: int) -> list[Metric]:
        return [Metric("retrieval", "", f"text_to_image_R@{k}", "trained", 0.5, 0.4, 0.6, 9) for k in range(1, count + 1)]

    heights = [pixels(score_chart(metrics(count))).shape[0] for count in (0, 1, 3, 4, 44)]
    assert heights[1] < heights[2] < heights[3] == heights[4]


def test_loss_curve_has_a_panel_for_each_logged_key() -> None:
    rows = [{"step": step, "loss": 5 / (step + 1), "lr": 1e-3} for step in range(20)] + [{"step": 5, "eval": 1.0}]
    tall, flat = loss_curve(rows, title="run"), loss_curve(rows, keys=("loss",))
    assert pixels(tall).shape[0] > 1.5 * pixels(flat).shape[0]
    assert pixels(loss_curve([])).size


def test_a_map_draws_images_in_place_of_points() -> None:
    points = np.random.default_rng(0).normal(size=(12, 2))
    red = [Image.new("RGB", (96, 96), "#ff0000")] * 12
    with_images, without = scatter(points, None, None, red), scatter(points, None, None)
    assert has_color(with_images, "#ff0000")
    assert not has_color(without, "#ff0000")


def test_more_classes_than_colors_share_gray() -> None:
    points = np.random.default_rng(0).normal(size=(400, 2))
    few, many = scatter(points, np.arange(400) % 3, None), scatter(points, np.arange(400) % 50, None)
    assert has_color(many, "#d5dae0") != has_color(few, "#d5dae0")
    assert len(set(PALETTE)) == len(PALETTE)
