"""Every released pair of architecture and weights is configured as open_clip itself builds it."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import open_clip
import pytest
from open_clip import factory
from open_clip.transform import PreprocessCfg
from torch import nn
from torch.nn import GELU

from mmcl.encoders import open_clip as ours

DEFAULTS = asdict(PreprocessCfg())


class Recorder(nn.Module):
    """Stands for open_clip's model classes and keeps the arguments with which one is built."""

    def __init__(self, **config: Any):
        super().__init__()
        self.config = config
        self.visual = nn.Module()


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIP", "CustomTextCLIP", "CoCa"):
        monkeypatch.setattr(factory, name, Recorder)
    for name in ("_set_model_device_and_precision", "load_checkpoint", "download_pretrained"):
        monkeypatch.setattr(factory, name, lambda *args, **kwargs: "nowhere")
    monkeypatch.setattr(ours, "download_pretrained", lambda tag: "nowhere")


@pytest.mark.usefixtures("without_weights")
def test_architecture_activation_and_preprocessing_are_open_clips() -> None:
    released = open_clip.list_pretrained()
    assert len(released) > 150
    quick = set()
    for arch, tag in released:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the activation, see below
            theirs: Any = open_clip.create_model(arch, pretrained=tag)
        config, _ = ours._resolve(arch, tag, None)
        for part in ("vision_cfg", "text_cfg"):
            built = {key: value for key, value in theirs.config[part].items() if not key.endswith("_pretrained")}
            assert {key: value for key, value in config[part].items() if not key.endswith("_pretrained")} == built, (arch, tag)
        for key in ("embed_dim", "init_logit_bias"):
            assert config.get(key) == theirs.config.get(key), (arch, tag)
        assert {**DEFAULTS, **config["preprocess_cfg"], "size": 0} == {**theirs.visual.preprocess_cfg, "size": 0}, (arch, tag)
        # open_clip builds by the architecture alone and warns where the weights were trained with QuickGELU all the same.
        trained_quick = open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False)
        assert config["quick_gelu"] == (theirs.config.get("quick_gelu", False) or trained_quick), (arch, tag)
        if config["quick_gelu"]:
            quick.add((arch, tag))
    assert {("roberta-ViT-B-32", "laion2b_s12b_b32k"), ("ViT-B-32", "openai"), ("ViT-B-32-quickgelu", "openai")} <= quick
    assert ("ViT-B-32", "laion2b_s34b_b79k") not in quick


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize(
    ("arch", "tag", "activation"),
    [
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", open_clip.transformer.QuickGELU),
        ("ViT-B-32", "openai", open_clip.transformer.QuickGELU),
        ("ViT-B-32", "laion2b_s34b_b79k", GELU),
    ],
)
def test_the_towers_have_the_activation_of_the_release(arch: str, tag: str, activation: type[nn.Module]) -> None:
    config, _ = ours._resolve(arch, tag, None)
    config["vision_cfg"] = {**config["vision_cfg"], "layers": 2, "width": 64}
    visual = ours.OpenClipImage(config).visual
    assert [type(module) for module in visual.modules() if "GELU" in type(module).__name__] == [activation] * 2
