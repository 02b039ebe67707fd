"""Weight files written by other programs: they are read, or the error says why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from mmcl.errors import UserError
from mmcl.files.untrusted import load_into, read_tensors

State = dict[str, torch.Tensor]


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def _torch_file(content: object, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def _last(state: Mapping[str, torch.Tensor]) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("wrapped", "average"),
    [
        (lambda own: {"state_dict": _last(own), "state_dict_ema": own, "epoch": 3}, "state_dict_ema"),
        (lambda own: {"model": _last(own), "model_ema": own}, "model_ema"),
        (lambda own: {"model": _last(own), "ema": {"module": own, "updates": 7}}, "ema"),
    ],
)
def test_the_average_of_weights_is_preferred_and_reported(
    wrapped: Any, average: str, net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = net.state_dict()
    found = read_tensors(_torch_file(wrapped(own), tmp_path))
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
    assert f"{average!r}, a running average" in caplog.text


def test_an_average_without_weights_is_ignored(net: nn.Module, tmp_path: Path) -> None:
    content = {"state_dict": net.state_dict(), "ema": {"decay": 0.999}}
    assert read_tensors(_torch_file(content, tmp_path)).keys() == net.state_dict().keys()


def test_an_index_is_read_with_its_shards(net: nn.Module, tmp_path: Path) -> None:
    own, places = net.state_dict(), {}
    for number, name in enumerate(own):
        places[name] = f"model-{number % 2}.safetensors"
    for file in set(places.values()):
        part = {name: tensor for name, tensor in own.items() if places[name] == file}
        safetensors.torch.save_file(part, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = read_tensors(index)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors: no such file"):
        read_tensors(index)


@pytest.mark.parametrize("places", [None, [], {"a": 3}, {"a": "../a.safetensors"}, {"a": "/etc/passwd"}])
def test_an_index_that_leads_elsewhere_is_refused(places: Any, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match="not an index of shards"):
        read_tensors(index)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pointer_of_git_lfs_says_so(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_an_archive_of_torchscript_says_how_to_take_its_weights_out(net: nn.Module, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(net.eval(), torch.zeros(1, 3, 4, 4)), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"TorchScript archive.*state_dict"):
        read_tensors(tmp_path / "net.pt")


@pytest.mark.parametrize("content", [b"\x80abc", b"\x89HDF\r\n", b"\x08\x07", b"", b"<!DOCTYPE html>", b"]]]", b"\x80\x02K."])
def test_bytes_that_are_something_else_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.bin: "):
        read_tensors(path)


def test_a_folder_is_reported_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder"):
        read_tensors(tmp_path)


def test_weights_from_before_batch_norms_counted_load(net: nn.Module, tmp_path: Path) -> None:
    own = {name: tensor + 1 for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_into(net, own, where="old.pth")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in own.items())


def test_integers_are_refused_as_weights(net: nn.Module) -> None:
    quantized = {name: (10 * tensor).to(torch.int8) for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=r"0\.weight is of type torch\.int8"):
        load_into(net, quantized, where="int8.safetensors")
