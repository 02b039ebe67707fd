"""Adapters written in peft's format: peft makes the same features of them, and refuses nothing that was written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.adapters import adapt, adapters
from mmcl.encoders.tower import Encoder, Tower, TowerSpec, wrap_encoder
from mmcl.errors import UserError
from mmcl.interop.peft import CONFIG, save_peft
from mmcl.runs.run import train
from tests.encoders import tiny
from tests.encoders.cases import inputs_of
from tests.engine.tiny import make_folder, tiny_config
from tests.faults.runs import small_vocabulary
from tests.narrow import of_type

TEXTS = ("clip", "siglip", "bert", "roberta", "distilbert", "modernbert", "gpt2", "t5")
IMAGES = ("clip", "siglip", "vit", "dinov2", "resnet")
CASES = [*(("text", kind) for kind in TEXTS), *(("image", kind) for kind in IMAGES)]

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it


def adapted(modality: str, kind: str, base: Path, name: str) -> Tower:
    tiny.transformers_model(kind, base)
    registry = TEXT_ENCODERS if modality == "text" else IMAGE_ENCODERS
    encoder = of_type(Encoder, registry.build("transformers", {"name": str(base)}))
    tower = wrap_encoder(encoder, TowerSpec(modality=modality, encoder="transformers"))  # type: ignore[arg-type]
    adapt(tower, name=name, rank=2, alpha=6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, adapter in adapters(tower):
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return tower.eval()


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize(("modality", "kind"), CASES)
def test_peft_makes_the_same_features(modality: str, kind: str, name: str, tmp_path: Path) -> None:
    """Loaded by peft into the library's own model, and merged by it."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    tower = adapted(modality, kind, base, name)
    save_peft(folder, tower, base=str(base))
    inputs = inputs_of(tower.encoder)
    expected = tower.encoder(inputs).detach()
    assert (expected - registry_of(modality).build("transformers", {"name": str(base)}).eval()(inputs)).abs().max() > 1e-3

    theirs: Any = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(base), folder).eval()
    inner: Any = copy.deepcopy(tower.encoder)
    model = theirs.base_model.model
    inner.model = model.encoder if kind == "t5" else model
    torch.testing.assert_close(inner(inputs), expected, rtol=1e-5, atol=1e-6 * max(1, float(expected.abs().max())))

    again = registry_of(modality).build("transformers", {"name": str(folder)}).eval()
    torch.testing.assert_close(again(inputs), expected, rtol=1e-5, atol=1e-6 * max(1, float(expected.abs().max())))


def registry_of(modality: str) -> Any:
    return TEXT_ENCODERS if modality == "text" else IMAGE_ENCODERS


class Other(nn.Module):
    pass


def test_what_peft_cannot_hold_is_named(tmp_path: Path) -> None:
    tower = adapted("image", "siglip", tmp_path / "base", "lora")
    plain = of_type(Encoder, IMAGE_ENCODERS.build("transformers", {"name": str(tmp_path / "base")}))
    packed = Tower(plain, nn.Identity(), spec=tower.spec)
    with pytest.raises(UserError, match="the encoder has no adapters: save them before they are merged"):
        save_peft(tmp_path / "adapter", packed, base=None)
    adapt(packed, where="in_proj_weight")
    with pytest.raises(UserError, match=r"in_proj_weight: peft does not adapt this parameter of MultiheadAttention by itself"):
        save_peft(tmp_path / "adapter", packed, base=None)
    own = Tower(of_type(Encoder, IMAGE_ENCODERS.build("small_cnn", {})), nn.Identity())
    with pytest.raises(UserError, match="peft adapts models of transformers, not the encoder SmallCNN"):
        save_peft(tmp_path / "adapter", own, base=None)
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def _small_vocabulary() -> Iterator[None]:
    with small_vocabulary():
        yield


@pytest.mark.usefixtures("_small_vocabulary")
def test_a_run_writes_its_adapters(tmp_path: Path) -> None:
    """Beside the merged model, of which they are the difference."""
    tiny.transformers_model("bert", tmp_path / "bert")
    text = ("--text.encoder", json.dumps({"name": "transformers", "args": {"name": str(tmp_path / "bert")}}))
    flags = (*text, "--text.adapt.args.rank", "2", "--train.steps", "3", "--train.ema", "0.5")
    train(tiny_config(make_folder(tmp_path / "squares"), tmp_path / "run", *flags))
    folder = tmp_path / "run/adapters/text"
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == str(tmp_path / "bert")
    import mmcl

    model = mmcl.load_model(tmp_path / "run", device="cpu").towers["text"]
    tokens = inputs_of(model.encoder)  # type: ignore[arg-type]
    expected: Tensor = model.encoder(tokens)  # type: ignore[operator]
    again = TEXT_ENCODERS.build("transformers", {"name": str(folder)}).eval()
    torch.testing.assert_close(again(tokens), expected, rtol=1e-5, atol=1e-5)
