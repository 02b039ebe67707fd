"""The same measurement detects known errors of other toolkits, so the harness is able to find faults."""

from __future__ import annotations

import functools

import pytest
from exactness import measure

LAYOUTS = {"accumulated": (1, 4), "processes": (2, 1), "both": (2, 4)}

measured = functools.cache(measure)


def errors(layout: str, toolkit: str) -> tuple[float, float, float]:
    """Relative error of the towers, their cosine with the truth, relative error of the temperature."""
    towers, cosine, temperature = measured(LAYOUTS[layout])[toolkit].values()
    return towers, cosine, temperature


def check_errors(layout: str, toolkit: str, *, towers: float = 0, temperature: float = 0) -> None:
    """The gradient points where the truth does, and its parts have these relative errors."""
    found_towers, cosine, found_temperature = errors(layout, toolkit)
    assert found_towers == pytest.approx(towers, rel=1e-4, abs=5e-6)
    assert cosine == pytest.approx(1)
    assert found_temperature == pytest.approx(temperature, rel=1e-4, abs=5e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mmcl_is_exact(layout: str) -> None:
    check_errors(layout, "mmcl")


def test_default_flags_scale_the_towers_by_the_number_of_processes() -> None:
    check_errors("processes", "open_clip", towers=0.5)


def test_local_loss_alone_points_elsewhere() -> None:
    towers, cosine, temperature = errors("processes", "open_clip --local-loss")
    assert cosine < 0.95
    assert towers > 0.3
    assert temperature == pytest.approx(0, abs=5e-6)


@pytest.mark.parametrize("flags", ["--gather-with-grad", "--local-loss --gather-with-grad"])
def test_gathering_with_gradient_is_right(flags: str) -> None:
    check_errors("processes", f"open_clip {flags}")


def test_its_accumulation_counts_the_temperature_once_for_each_piece() -> None:
    """Four pieces: four times the gradient, an error of three."""
    check_errors("accumulated", "open_clip", temperature=3)
    assert errors("both", "open_clip --gather-with-grad")[2] == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_negatives_that_are_not_gathered_are_missing(layout: str) -> None:
    towers, cosine, _ = errors(layout, "transformers")
    assert towers > 0.02
    assert cosine < 0.999
