"""Untrusted files: no payload is executed, whatever the file's name, and damage is reported in one clear line."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.errors import UserError
from mmcl.files.untrusted import read_json, read_tensors
from mmcl.interop.load import load_model
from tests.encoders import tiny
from tests.interop.test_model import make_towers


class _Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that exists once the payload has run."""
    return tmp_path / "executed"


def _torch_file(path: Path, witness: Path) -> None:
    torch.save({"weight": torch.zeros(2), "payload": _Payload(witness)}, path)


def _old_torch_file(path: Path, witness: Path) -> None:
    torch.save({"payload": _Payload(witness)}, path, _use_new_zipfile_serialization=False)


def _bare_pickle(path: Path, witness: Path) -> None:
    path.write_bytes(pickle.dumps(_Payload(witness)))


def test_the_payload_works(tmp_path: Path, witness: Path) -> None:
    """Else the tests below would prove nothing."""
    _bare_pickle(tmp_path / "weights.pt", witness)
    pickle.loads((tmp_path / "weights.pt").read_bytes())
    assert witness.exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("write", [_torch_file, _old_torch_file, _bare_pickle])
def test_no_payload_runs(write: Callable[[Path, Path], None], suffix: str, tmp_path: Path, witness: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    write(path, witness)
    with pytest.raises(UserError, match=f"weights{suffix}") as caught:
        read_tensors(path)
    assert not witness.exists()
    assert "\n" not in str(caught.value)


def _run_folder(folder: Path, payload: Path) -> str:
    from mmcl.interop.save import save_model

    save_model(folder / "model", make_towers())
    payload.replace(folder / "model" / "model.safetensors")
    return str(folder)


def _transformers_folder(folder: Path, payload: Path) -> str:
    tiny.transformers_model("clip", folder)
    (folder / "model.safetensors").unlink()
    payload.replace(folder / "pytorch_model.bin")
    return f"hf:{folder}"


@pytest.mark.parametrize(
    "name",
    [
        lambda folder, payload: f"open_clip:ViT-B-32/{payload}",
        lambda folder, payload: f"timm:test_vit/{payload}",
        lambda folder, payload: f"torchvision:squeezenet1_1/{payload}",
        _transformers_folder,
        _run_folder,
    ],
    ids=["open_clip", "timm", "torchvision", "transformers", "mmcl"],
)
def test_no_payload_runs_through_any_way_in(name: Callable[[Path, Path], str], tmp_path: Path, witness: Path) -> None:
    payload = tmp_path / "weights.pt"
    _torch_file(payload, witness)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError):
        load_model(name(tmp_path / "folder", payload), device="cpu")
    assert not witness.exists()


@pytest.mark.parametrize("registry", [IMAGE_ENCODERS, TEXT_ENCODERS], ids=["image", "text"])
def test_remote_code_is_not_run(registry: Any, tmp_path: Path, witness: Path) -> None:
    """A repository may bring its own model class; it must be refused without a question on the terminal."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}})
    )
    (tmp_path / "theirs.py").write_text(f"import os; os.system('touch {witness}')")
    given = (None,) if registry is TEXT_ENCODERS else ()
    with pytest.raises(UserError, match=r"trust_remote_code|has no model"):
        registry.build("transformers", {"name": str(tmp_path)}, *given)
    assert not witness.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"<html>404</html>", b"\xff" * 64, b"PK\x03\x04 cut zip"])
def test_damaged_weights_are_one_clear_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"weights{suffix}") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_cut_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"weights cannot be read|damaged"):
        read_tensors(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="tensors"):
        read_tensors(tmp_path / "weights.pt")


def test_a_safetensors_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)


def test_nested_and_wrapped_weights_are_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"module.weight": torch.ones(2)}}, tmp_path / "weights.pt")
    tensors = read_tensors(tmp_path / "weights.pt")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"weight": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "JSON object"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ('{"a": 1}', "too many")],
)
def test_json_is_bounded(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    limit = 3 if message == "too many" else 10**6
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", max_bytes=limit)


def test_undecodable_json_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_an_archive_of_foreign_code_is_refused(tmp_path: Path) -> None:
    """TorchScript files are zip archives with code in them."""
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("archive/code/model.py", "raise SystemExit")
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(UserError, match=r"weights\.pt"):
        read_tensors(tmp_path / "weights.pt")
