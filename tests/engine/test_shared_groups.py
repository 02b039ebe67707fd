"""Groups of the data of a run: what is held out shares none with the training data, and the doctor names shared ones."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmcl.config import Config
from mmcl.runs.build_data import build_training_data
from mmcl.runs.doctor import diagnose
from tests.engine.tiny import COLORS, SIZES, tiny_config
from tests.narrow import present


def by_color(folder: Path, *colors: str) -> dict[str, object]:
    """A table of the squares of some colors, which are their groups, as the data of a configuration."""
    rows = [f"{color}_{size}.png,a {size} {color} square,{color}" for color in colors for size in SIZES]
    path = folder.parent / f"{'_'.join(colors)}.csv"
    path.write_text("\n".join(["image,caption,color", *rows]))
    return {"name": "table", "path": str(path), "args": {"image_root": str(folder), "group_column": "color"}}


def config(folder: Path, evaluated: object, *flags: str, **data: object) -> Config:
    evaluator = {"name": "retrieval", "label": "squares"} | ({} if evaluated is None else {"data": evaluated})
    given = [part for name, value in data.items() for part in (f"--data.{name}", yaml.safe_dump(value))]
    more = ("--evaluate", yaml.safe_dump([evaluator]), "--train.steps", "2", "--train.batch_size", "4")
    return tiny_config(folder, folder.parent / "run", *more, *given, *flags)


def train_on(folder: Path, *colors: str) -> tuple[str, ...]:
    source = by_color(folder, *colors)
    return tuple(part for name, value in source.items() for part in (f"--data.train.{name}", yaml.safe_dump(value).strip()))


def test_shared_groups_are_named(folder: Path) -> None:
    def said(*colors: str) -> list[str]:
        found = diagnose(config(folder, by_color(folder, *colors), *train_on(folder, "red", "green", "blue")))
        return [line for line in found.warnings if "group" in line]

    (line,) = said("yellow", "blue", "red", "black")
    assert line.startswith("squares: 2 of 4 groups are in the training data too, as that of ")
    assert line.endswith("blue_tiny.png: results do not hold for new groups; leave them out of one (data.keep)")
    assert said("yellow", "black") == []


def test_what_is_held_out_shares_no_group_with_the_training_data(folder: Path) -> None:
    for seed in ("0", "1"):
        whole = config(folder, None, *train_on(folder, *COLORS), "--train.seed", seed, "--data.holdout", "0.3")
        train, held_out = build_training_data(whole)
        assert (len(train), len(present(held_out))) in ((20, 5), (15, 10))
        assert not set(present(train.groups)) & set(present(present(held_out).groups))


def test_datasets_of_a_mixture_are_split_together(folder: Path) -> None:
    parts = {"one": by_color(folder, "red", "green", "blue"), "two": by_color(folder, "blue", "yellow", "black", "red")}
    for seed in range(4):
        mixed = config(folder, None, "--data.train", "{}", "--train.seed", str(seed), "--data.holdout", "0.3", mix=parts)
        train, held_out = build_training_data(mixed)
        sides = [set(present(source.groups)) for source in (train, present(held_out))]
        assert not sides[0] & sides[1]
        assert len(sides[0] | sides[1]) == 5
