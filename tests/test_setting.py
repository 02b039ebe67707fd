"""Metadata of the schema's fields: both sides of every bound, and which settings do not affect the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from mmcl import config as schema
from mmcl.config import Config, from_dict, is_decisive
from mmcl.config.setting import Facts, check_ranges, facts_of, setting
from mmcl.errors import UserError

SECTIONS = [getattr(schema, name) for name in schema.__all__ if dataclasses.is_dataclass(getattr(schema, name))]

WITHOUT_EFFECT = {
    "allow_change",
    "run_dir",
    "resume",
    "verify_data",
    "evaluate",
    "data.root",
    "data.train.path",
    "data.cache",
    "data.embeddings",  # where the rows of teachers are; a run that resumes compares the rows themselves
    "data.workers",
    "data.max_pixels",
    "data.max_bad_fraction",
    "data.max_bad_consecutive",
    "train.alpha",
    "train.checkpoint_activations",
    "train.max_skipped",
    "train.fsdp",
    "train.micro_batch",
    "train.on_nonfinite",
    "train.threads",
    "train.log_every",
    "train.save_every",
    "train.save_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.best_is",
    "train.patience",
    "train.export",
    "train.timeout_seconds",
    "train.trackers",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    size: int | None = setting(None, at_least=1)


@dataclasses.dataclass(frozen=True)
class Tree:
    by_name: dict[str, Leaf]
    listed: tuple[Leaf, ...] = ()


def bounds() -> Iterator[tuple[Any, str, float, bool]]:
    """Section, field, a value at or beside one of its bounds, and whether it is allowed."""
    for section in SECTIONS:
        hints = get_type_hints(section)
        for one in dataclasses.fields(section):
            facts, step = facts_of(one), 1 if "int" in str(hints[one.name]) else 1e-6
            if facts.at_least is not None:
                yield from ((section, one.name, facts.at_least - step, False), (section, one.name, facts.at_least, True))
            if facts.above is not None:
                yield from ((section, one.name, facts.above, False), (section, one.name, facts.above + step, True))
            if facts.at_most is not None:
                yield from ((section, one.name, facts.at_most, True), (section, one.name, facts.at_most + step, False))
            if facts.below is not None:
                yield from ((section, one.name, facts.below - step, True), (section, one.name, facts.below, False))


@pytest.mark.parametrize(("section", "name", "value", "allowed"), list(bounds()))
def test_both_sides_of_every_bound(section: Any, name: str, value: float, allowed: bool) -> None:
    required = {one.name: "x" for one in dataclasses.fields(section) if one.default is one.default_factory}
    several = "tuple" in str(get_type_hints(section)[name])
    settings = section(**required | {name: (value, value) if several else value})
    if allowed:
        check_ranges(settings)
        return
    with pytest.raises(UserError, match=f"^{name} is .*: give "):
        check_ranges(settings)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, ""),
        ({"at_least": 0}, "of 0 or more"),
        ({"above": 0}, "above 0"),
        ({"at_most": 1}, "at most 1"),
        ({"below": 1}, "below 1"),
        ({"at_least": 0, "at_most": 1}, "from 0 to 1"),
        ({"at_least": 0, "below": 1}, "from 0 to below 1"),
        ({"above": 0, "at_most": 1}, "above 0 and at most 1"),
        ({"above": 0, "below": 1.5}, "above 0 and below 1.5"),
    ],
)
def test_a_range_in_words(bounds: dict[str, float], words: str) -> None:
    assert Facts(**bounds).range == words  # type: ignore[arg-type]


def test_nan_is_in_no_range() -> None:
    for facts in (Facts(at_least=0), Facts(above=0), Facts(at_most=0), Facts(below=0)):
        assert not facts.allow(math.nan)


def test_a_value_far_down_is_named_by_its_whole_path() -> None:
    with pytest.raises(UserError, match=r"^by_name\.b\.size is 0: give null or a whole number of 1 or more$"):
        check_ranges(Tree(by_name={"a": Leaf(3), "b": Leaf(0)}))
    with pytest.raises(UserError, match=r"^listed\.1\.size is -1"):
        check_ranges(Tree(by_name={}, listed=(Leaf(), Leaf(-1))))


def test_what_leaves_the_model_as_it_is() -> None:
    """A setting moves between the two only on purpose: a resumed run may differ in these alone."""
    tree = {"method": {"name": "clip"}, "image": {"encoder": {"name": "x"}}, "train": {"steps": 1}}
    keys = schema.flat_settings(from_dict(Config, tree, "here"))
    assert {key for key in keys if not is_decisive(key)} == WITHOUT_EFFECT
    assert not is_decisive("evaluate.0.label")
    assert not is_decisive("data.mix.photos.path")
    assert is_decisive("data.mix.photos.args.path")
    assert is_decisive("data.views.small.size")
