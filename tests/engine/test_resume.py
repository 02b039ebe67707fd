"""A resume compares settings, training data including the images, and the environment, even before the first checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from mmcl.config import Config, flat_settings, from_dict, load_config, unflattened
from mmcl.data.identity import spread_rows
from mmcl.errors import UserError
from mmcl.runs import resume
from mmcl.runs.components import complete_settings
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = ("--train.steps", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The squares as BMP: all images take the same number of bytes."""
    place = make_folder(tmp_path_factory.mktemp("data") / "squares")
    for path in place.glob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    listing = place / "captions.csv"
    listing.write_text(listing.read_text().replace(".png", ".bmp"))
    return place


Started = Callable[..., Path]


@pytest.fixture
def started(folder: Path, tmp_path: Path) -> Started:
    """Starts a run on a copy of the data, to its end or to what a kill before the first checkpoint leaves."""

    def start(*flags: str, saved: bool = True) -> Path:
        shutil.copytree(folder, tmp_path / "data" / "squares")
        train(configured(tmp_path, *flags))
        if not saved:
            for made in ("checkpoints", "model"):
                shutil.rmtree(tmp_path / "run" / made)
        return tmp_path / "data" / "squares"

    return start


def configured(place: Path, *flags: str) -> Config:
    return tiny_config(place / "data" / "squares", place / "run", *STEPS, *flags)


def replace_image(path: Path, *, larger: bool) -> None:
    image = ImageOps.mirror(ImageOps.invert(Image.open(path).convert("RGB")))
    (image.resize((40, 40)) if larger else image).save(path)


def as_table(place: Path) -> tuple[str, ...]:
    return ("--data.train.path", str(place / "captions.csv"), "--data.train.name", "table")


@pytest.mark.parametrize(
    ("saved", "larger", "table"),
    [
        (True, False, False),
        (False, True, True),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((True, True, True), (False, False, False))),
    ],
)
def test_replaced_images_are_refused_by_name(started: Started, tmp_path: Path, saved: bool, larger: bool, table: bool) -> None:
    flags = as_table(tmp_path / "data" / "squares") if table else ()
    place = started(*flags, saved=saved)
    train(configured(tmp_path, *flags, "--resume"))
    if not saved:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    replace_image(place / "blue_huge.bmp", larger=larger)
    with pytest.raises(UserError, match=r"data\.train: the training data changed.*--allow_change data\.train"):
        train(configured(tmp_path, *flags, "--resume"))
    train(configured(tmp_path, *flags, "--resume", "--allow_change", "data.train"))


def test_a_copy_at_another_place_and_time_is_the_same_data(
    started: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = started("--verify_data")
    copy = shutil.move(shutil.copytree(place, tmp_path / "copy", copy_function=shutil.copyfile), tmp_path / "elsewhere")
    caplog.set_level("INFO", "mmcl")
    train(configured(tmp_path, "--data.train.path", str(copy), "--resume", "--verify_data"))
    changes = [line for line in caplog.messages if line.startswith("changed on resume")]
    assert changes == [f"changed on resume: data.train.path: {place} -> {copy}"]


def test_every_image_is_compared_on_request(started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many samples a resume looks at some; what a run recorded of all stays through resumes that look at some."""
    monkeypatch.setattr(resume, "COMPARED", 2)
    place = started("--verify_data")
    compared = set(spread_rows(25, 2).tolist())
    listed = (place / "captions.csv").read_text().splitlines()[1:]
    unseen = next(line.split(",")[0] for row, line in enumerate(listed) if row not in compared)
    replace_image(place / unseen, larger=False)
    train(configured(tmp_path, "--resume"))
    with pytest.raises(UserError, match="other images under the same list"):
        train(configured(tmp_path, "--resume", "--verify_data"))


def test_what_was_not_recorded_cannot_be_verified(started: Started, tmp_path: Path) -> None:
    started()
    with pytest.raises(UserError, match="--verify_data needs a run that was started with it"):
        train(configured(tmp_path, "--resume", "--verify_data"))


@pytest.mark.parametrize("saved", [True, False], ids=["with a checkpoint", "before the first"])
def test_other_settings_are_refused(started: Started, tmp_path: Path, saved: bool) -> None:
    started(saved=saved)
    with pytest.raises(UserError, match=r"optim\.lr: 0\.003 -> 0\.1"):
        train(configured(tmp_path, "--resume", "--optim.lr", "0.1"))


@pytest.mark.parametrize("saved", [True, False], ids=["with a checkpoint", "before the first"])
def test_other_threads_and_versions_are_listed(
    started: Started, tmp_path: Path, saved: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started(saved=saved)
    original = metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1" if name == "numpy" else original(name))
    caplog.set_level("INFO", "mmcl")
    train(configured(tmp_path, "--resume", "--train.threads", "2"))
    said = caplog.text
    assert "changed on resume: threads: 1 -> 2\n" in said
    assert f"changed on resume: numpy: {original('numpy')} -> 0.0.1\n" in said
    assert said.count("changed on resume") == 3, "and train.threads"


@pytest.mark.parametrize("damage", [None, "[]", '{"settings": 1}'])
def test_a_run_without_a_record_is_one_line(started: Started, tmp_path: Path, damage: str | None) -> None:
    started(saved=False)
    record = tmp_path / "run" / resume.FILE
    record.unlink() if damage is None else record.write_text(damage)
    with pytest.raises(UserError, match=r"identity\.json"):
        train(configured(tmp_path, "--resume"))


def test_the_record_is_json_for_people_too(started: Started, tmp_path: Path) -> None:
    started()
    record = json.loads((tmp_path / "run" / resume.FILE).read_text())
    assert record["environment"]["processes"] == 1
    assert record["settings"]["train.steps"] == 1
    assert "resume" not in {key for key, value in record["settings"].items() if value is True}


def identity(config: Config) -> dict[str, Any]:
    return {
        "settings": flat_settings(resume.without_start_settings(config)),
        "data": "0",
        "images": "0",
        "frozen": {},
        "all_images": None,
        "environment": {},
    }


@pytest.mark.parametrize(
    ("started", "resumed"),
    [
        ("--method.args.temperature 0.07", ""),
        ("", "--method.args.temperature 0.07"),
        ("", "--text.encoder.args.dropout 0"),
        ("", "--data.augment [{name: affine, args: {rotation: 10, p: 1.0}}]"),
        ("", "--data.train.args {}"),
        ("", "--optim.betas 0.9 0.98 --optim.lr 0.003"),
        ("", "--data.views {}"),
        ("", "--evaluate []"),
    ],
)
def test_a_flag_with_the_default_value_is_not_a_change(started: str, resumed: str, folder: Path, tmp_path: Path) -> None:
    before, now = (tiny_config(folder, tmp_path / "run", *_words(flags)) for flags in (started, resumed))
    assert resume.compare(identity(before), identity(now), now) == []


def _words(flags: str) -> list[str]:
    """A value in brackets is one word."""
    return re.findall(r"--\S+|\[.*\]|\{.*\}|\S+", flags)


def test_a_new_setting_at_its_default_is_not_a_change(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, tmp_path / "run")
    saved = identity(config)
    del saved["settings"]["optim.clip"]
    assert resume.compare(saved, identity(config), config) == []
    saved["settings"]["optim.gone"] = 3
    with pytest.raises(UserError, match=r"optim\.gone: 3 -> None"):
        resume.compare(saved, identity(config), config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_with_all_defaults_are_those_of_the_configuration(path: Path) -> None:
    complete = complete_settings(load_config(path))
    again = from_dict(Config, unflattened(complete), "again")
    assert flat_settings(again) == complete_settings(again) == complete
