"""`mmcl example`: folders of images that other commands read without a warning, of a vendor that the default run never sees."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcl import open_source
from mmcl.cli.main import main
from mmcl.config import load_config
from mmcl.data.example import KINDS, write_example
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.data.sources.emoji import EmojiSource
from mmcl.errors import UserError


def bundled() -> dict[str, bytes]:
    """The bundled images of Twemoji by caption."""
    samples = rows_of(EmojiSource(None, None, fold="all", vendors=["twemoji"]))
    return {sample.captions[0]: sample.image for sample in samples if isinstance(sample.image, bytes)}


def rows_of(source: Source) -> list[Sample]:
    return [source[row] for row in range(len(source))]


def seen(image: bytes | Path, side: int) -> np.ndarray:
    opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    return np.asarray(opened.convert("RGB").resize((side, side), Image.Resampling.BOX), float)


def opened(folder: Path) -> Source:
    return open_source("auto", str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_those_of_one_vendor_with_its_license(kind: str, tmp_path: Path) -> None:
    count = write_example(tmp_path / "a", kind)
    source = opened(tmp_path / "a")
    assert len(source) == count == len(list((tmp_path / "a").rglob("*.png")))
    assert source.warnings == []
    expected = bundled()
    names = {"".join(filter(str.isalpha, caption)): caption for caption in expected}
    for sample in rows_of(source):
        image = Path(sample.name)
        assert str(image) == sample.image
        caption = sample.captions[0] if kind == "captions" else names["".join(filter(str.isalpha, image.stem))]
        # Shrunk again, an image that was enlarged is what it was, but for the overshoot at its edges.
        assert np.abs(seen(image, 16) - seen(expected[caption], 16)).mean() < 2
    notice = (tmp_path / "a" / "NOTICE.md").read_text(encoding="utf-8")
    assert "Twemoji v16.0.1, Copyright Twitter, Inc and other contributors" in notice
    assert "CC-BY 4.0" in notice


def test_the_default_run_never_trains_on_them() -> None:
    train = load_config("clip_emoji").data.train
    assert "twemoji" not in set(EmojiSource(None, None, **train.args).vendor)


def test_captions_and_classes(tmp_path: Path) -> None:
    write_example(tmp_path / "photos")
    captions = [sample.captions for sample in rows_of(opened(tmp_path / "photos"))]
    assert 12 <= len(set(captions)) == len(captions) <= 30
    write_example(tmp_path / "labeled", "classes")
    labeled = opened(tmp_path / "labeled")
    assert labeled.labels is not None
    assert np.bincount(labeled.labels).tolist() == [8] * len(labeled.class_names or ())


def test_the_command_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert main(["example", "photos/"]) == 0
    assert capsys.readouterr().out == "24 images with captions in photos, licensed under CC-BY 4.0 (photos/NOTICE.md)\n"
    assert main(["example", "deep/er", "--kind", "classes"]) == 0
    assert sorted(path.name for path in Path("deep/er").iterdir()) == ["NOTICE.md", "cat", "clock", "heart", "moon"]


def test_existing_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/.hidden").touch()
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    for place, said in (("mine", "has files already"), ("file", "is a file"), ("file/a", "is a file"), ("/proc/a", "/proc")):
        assert main(["example", place]) == 2
        assert said in capsys.readouterr().err
    assert sorted(str(path) for path in Path().rglob("*")) == ["file", "link", "mine", "mine/.hidden"]


def test_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'caption'.*did you mean 'captions'"):
        write_example(tmp_path / "a", "caption")
    assert not (tmp_path / "a").exists()
