"""Figures are valid images with the expected contents, whatever the captions. Warnings are errors here."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmcl.evaluate.reporting.figures import PALETTE, RIGHT, WRONG, loss_curve, retrieval_examples, scatter
from mmcl.testing.patterns import pattern

AWKWARD = ["猫が笑う", "قطة", "बिल्ली", "cost $5 or $6_x^$", "a\nb", "", "<script>" * 30, "\U0001f600 \ud7ff"]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def has_colour(png: bytes, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(png) == wanted).all(axis=2).any())


@pytest.mark.parametrize("right", [True, False])
def test_hits_are_green_and_misses_red(right: bool) -> None:
    image = Image.fromarray(pattern(0)).convert("L")
    png = retrieval_examples([("a text", [(image, right)])], [(image, [("a text", right)])], title="Examples")
    assert has_colour(png, RIGHT) == right
    assert has_colour(png, WRONG) == (not right)


def test_no_caption_breaks_an_image() -> None:
    image = Image.fromarray(pattern(0))
    texts = [(text, [(image, True)] * 3) for text in AWKWARD]
    examples = retrieval_examples(texts, [(image, [(text, False) for text in AWKWARD])], title="猫 $x$")
    points = scatter(np.random.default_rng(0).normal(size=(8, 2)), np.arange(8), AWKWARD, title="猫")
    assert pixels(examples).size > 0
    assert pixels(points).size > 0


def test_loss_curve_has_a_panel_for_each_logged_key() -> None:
    rows = [{"step": step, "loss": 5 / (step + 1), "lr": 1e-3} for step in range(20)] + [{"step": 5, "eval": 1.0}]
    tall, flat = loss_curve(rows, title="run"), loss_curve(rows, keys=("loss",))
    assert pixels(tall).shape[0] > 1.5 * pixels(flat).shape[0]
    assert pixels(loss_curve([])).size


def test_more_classes_than_colours_share_grey() -> None:
    points = np.random.default_rng(0).normal(size=(400, 2))
    few, many = scatter(points, np.arange(400) % 3, None), scatter(points, np.arange(400) % 50, None)
    assert has_colour(many, "#d5dae0") != has_colour(few, "#d5dae0")
    assert len(set(PALETTE)) == len(PALETTE)
