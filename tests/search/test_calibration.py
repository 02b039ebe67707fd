"""The fit of `match` in an index on disk: kept, made again when the collection has changed, and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcl.cli import index as index_verbs
from mmcl.cli import index_care as verbs
from mmcl.errors import UserError
from mmcl.search import Index, calibration
from tests.search.test_approximate import Looked


def write_images(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(folder / f"{number:03}.png")
    lines = [f"{path.name},{int(path.stem)}" for path in sorted(folder.glob("*.png"))]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *lines]) + "\n")


def test_the_fit_is_made_again_when_a_fifth_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LEAST", 20)
    photos = tmp_path / "photos"
    write_images(photos, range(30))
    index = Index.build(photos, Looked(), out=tmp_path / "index")
    index.calibrate()
    made = dict(index.store.calibration or {})
    assert made["images"] == 30
    assert index.search("17")[0].match is not None
    for numbers, images in ((range(30, 36), 30), (range(36, 37), 37)):  # a fifth more, and one more than that
        write_images(photos, numbers)
        index.sync()
        kept = dict(index.store.calibration or {})
        assert (kept["images"], kept == made) == (images, images == 30)
    for path in sorted(photos.glob("*.png"))[10:]:
        path.unlink()
    write_images(photos, range(0))
    index.sync(allow_empty=True)
    assert index.store.calibration is None  # ten captions are too few
    assert index.search("3")[0].match is None


def test_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "photos", range(40))
    place = str(tmp_path / "index")
    Index.build(tmp_path / "photos", Looked(), out=place)
    with pytest.raises(UserError, match="200 different captions or more, and the index has 40"):
        verbs.calibrate(place)
    monkeypatch.setattr(calibration, "LEAST", 40)
    verbs.calibrate(place)
    assert "fitted to 40 captions" in capsys.readouterr().out
    verbs.recall(place, queries=20, top_k=5, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["recall"], facts["of"], facts["exact"], facts["queries"]) == (1, "captions", True, 20)
    verbs.optimize(place, ann="ivf_flat")
    index_verbs.status(place)
    verbs.recall(place, queries=20, top_k=5)
    said = capsys.readouterr().out
    assert "mmcl index recall" in said
    assert "approximate (ivf_flat)" in said
    assert "match       calibrated" in said
    assert "approximate, finds" in said
    verbs.optimize(place, ann="none")
    assert Index.open(place, Looked()).search("3").exact
    assert np.isclose(Index.open(place, Looked()).search("3")[0].score, 1)
