"""Images that training and evaluation data share: the doctor names them, and a list of what to keep leaves them out."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from mmcl.engine.log import read_log
from mmcl.runs.doctor import diagnose
from mmcl.runs.run import train
from tests.engine.tiny import tiny_config

SHARED = ["black_huge.png", "blue_tiny.png", "red_small.png"]


def test_shared_images_are_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    test.mkdir()
    for number, name in enumerate(SHARED):  # under other names
        shutil.copy(folder / name, test / f"{number}.png")
    (test / "own.png").write_bytes((folder / SHARED[0]).read_bytes() + b"\0")
    rows = [f"{file.name},square {file.stem}" for file in sorted(test.glob("*.png"))]
    (test / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    data = {"name": "folder", "path": str(test)}
    evaluated = yaml.safe_dump([{"name": "retrieval", "label": "squares", "data": data}])
    flags = ("--evaluate", evaluated, "--train.steps", "2")

    def said(*more: str) -> list[str]:
        found = diagnose(tiny_config(folder, tmp_path / "run", *flags, *more))
        return [line for line in found.warnings if "byte for byte" in line]

    (line,) = said()
    assert line.startswith("squares: 3 of 4 images are in the training data too, byte for byte, as ")
    assert line.endswith("0.png: results on them show what was memorized; leave them out of one (data.keep)")

    kept = tmp_path / "kept.txt"
    kept.write_text("".join(f"{file.name}\n" for file in sorted(folder.glob("*.png")) if file.name not in SHARED))
    keep = ("--data.keep", str(kept))
    assert said(*keep) == []
    assert diagnose(tiny_config(folder, tmp_path / "run", *flags, *keep)).samples == 22

    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)
    for name in SHARED:
        (fewer / name).unlink()
    lines = (folder / "captions.csv").read_text().splitlines()
    (fewer / "captions.csv").write_text("\n".join(line for line in lines if line.partition(",")[0] not in SHARED))
    steps = ("--evaluate", "[]", "--train.steps", "4")
    train(tiny_config(folder, tmp_path / "kept", *keep, *steps))
    train(tiny_config(fewer, tmp_path / "without", *steps))
    losses = [[row["loss"] for row in read_log(tmp_path / run / "metrics.jsonl")] for run in ("kept", "without")]
    assert losses[0] == losses[1], "a run with the list is a run on a folder without the others"
    assert len(losses[0]) == 4
