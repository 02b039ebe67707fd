"""What is published holds no secret and no place of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmcl.files.redaction import has_secret, private_part, redacted

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data/clients/photos", "photos"),
        ("~/photos/", "photos"),
        ("../photos", "photos"),
        (r"C:\Users\me\photos", "photos"),
        (r"\\server\share\photos", "photos"),
        ("https://me:secret@host.org:80/a/b.tar?token=x&y=1#part", "https://host.org:80/a/b.tar"),
        ("s3://bucket/a-{000..010}.tar", "s3://bucket/a-{000..010}.tar"),
        (f"read with {TOKEN}", "read with ***"),
        (f"https://{TOKEN}@huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("hf:openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("hf:/home/me/models/clip", "hf:clip"),
        ("open_clip:local-dir:/home/me/models/clip", "open_clip:local-dir:clip"),
        ("open_clip:ViT-B-32//home/me/weights.pt", "open_clip:ViT-B-32/weights.pt"),
        ("timm:resnet18/../weights.pt", "timm:resnet18/weights.pt"),
        ("onnx:~/graphs", "onnx:graphs"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("text_to_image_R@1", "text_to_image_R@1"),
        ("a photo of a {}.", "a photo of a {}."),
        ("http://[half", "***"),
        ("and/or", "and/or"),
        (3.5, 3.5),
        (None, None),
        (True, True),
    ],
)
def test_values(value: Any, expected: Any) -> None:
    assert redacted(value) == expected
    assert redacted({"a": [value, {"b": value}]}) == {"a": [expected, {"b": expected}]}
    assert not isinstance(expected, str) or not has_secret(expected)


def test_a_relative_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clients/secret").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert redacted("clients/secret") == "secret"
    assert redacted("init: runs/a") == "init: runs/a"


def test_settings_that_are_places_are_left_out() -> None:
    assert redacted({"run_dir": "runs/a", "data": {"root": None, "seed": 1}}) == {"data": {"seed": 1}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"token: {TOKEN}", "hf_aB3…"),
        ("ghp_" + "a" * 36, "ghp_aa…"),
        ("see https://me:secret@host/a", "https://host/a with a login"),
        ("see https://host/a?b=1 and mail a@b.org", None),
        ("nothing", None),
    ],
)
def test_what_is_left_is_found(text: str, found: str | None) -> None:
    assert private_part(text) == found


def test_the_places_of_this_machine_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    assert private_part(f"in {tmp_path}/me/photos") == str(tmp_path / "me")
    assert private_part(f"in {tmp_path}/photos") == str(tmp_path)
    assert private_part(f"in {tmp_path}_other/photos") is None
