"""The depth of a parameter is where the forward pass first uses it, in the towers of every library."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.blocks import blocks, module_depths, parameter_depths
from mmcl.encoders.heads import LinearHead
from mmcl.encoders.small_text import SmallText
from mmcl.encoders.strided_cnn import StridedCNN
from mmcl.encoders.tower import ImageEncoder, Tower
from mmcl.errors import UserError
from tests.encoders import tiny

TEXTS = ["a cat", "the red dog on a hill"]


def open_clip_encoder(kind: str, folder: Path, modality: str) -> Any:
    config = tiny.open_clip_config(kind, folder)
    if kind == "resnet":
        config["vision_cfg"]["layers"] = [2, 1, 2, 1]
    return (IMAGE_ENCODERS if modality == "image" else TEXT_ENCODERS).build("open_clip", {"config": config})


def transformers_encoder(kind: str, folder: Path, modality: str) -> Any:
    tiny.transformers_model(kind, folder)
    fixed = {"preprocess": {"size": 32, "resize": "squash"}} if (modality, kind) == ("image", "siglip2") else {}
    return (IMAGE_ENCODERS if modality == "image" else TEXT_ENCODERS).build("transformers", {"name": str(folder), **fixed})


def timm_encoder(kind: str, folder: Path, modality: str) -> Any:
    return IMAGE_ENCODERS.build("timm", {"name": kind})


def torchvision_encoder(kind: str, folder: Path, modality: str) -> Any:
    """Of full size, and so without values."""
    with torch.device("meta"):
        return IMAGE_ENCODERS.build("torchvision", {"name": kind, "image_size": None if kind.startswith("vit") else 64})


def own_encoder(kind: str, folder: Path, modality: str) -> Any:
    return SmallText(width=8, heads=2, layers=int(kind)) if modality == "text" else StridedCNN(image_size=16, blocks=(1, 0, 2))


BUILDERS: dict[str, Callable[[str, Path, str], Any]] = {
    "open_clip": open_clip_encoder,
    "transformers": transformers_encoder,
    "timm": timm_encoder,
    "torchvision": torchvision_encoder,
    "mmcl": own_encoder,
}
CASES = {
    **{("image", "open_clip", kind): 2 for kind in ("clip", "eos", "coca")},
    **{("image", "transformers", kind): 2 for kind in ("clip", "siglip", "siglip2", "vit", "dinov2", "resnet")},
    **{("text", "open_clip", kind): 2 for kind in ("clip", "eos", "siglip", "coca", "bert")},
    **{
        ("text", "transformers", kind): 2
        for kind in ("clip", "siglip", "siglip2", "bert", "roberta", "distilbert", "modernbert", "gpt2", "t5")
    },
    ("image", "open_clip", "resnet"): 4,
    ("image", "open_clip", "siglip"): 6,
    ("image", "timm", "test_vit"): 6,
    ("image", "timm", "test_convnext"): 4,
    ("image", "torchvision", "resnet18"): 8,
    ("image", "torchvision", "swin_t"): 12,
    ("image", "torchvision", "convnext_tiny"): 18,
    ("image", "torchvision", "mobilenet_v3_small"): 13,
    ("image", "mmcl", "strided_cnn"): 6,
    ("text", "mmcl", "1"): 1,
    ("text", "mmcl", "3"): 3,
}
"""Modality, library and kind -> number of blocks."""


def inputs_of(encoder: Any) -> Any:
    if not isinstance(encoder, ImageEncoder):
        return encoder.tokenizer(TEXTS)
    preprocess = encoder.preprocess
    shape = 2, preprocess.channels, preprocess.height, preprocess.width
    return torch.rand(shape, device=next(encoder.parameters()).device)


class FirstUses(TorchFunctionMode):
    """What was computed before a parameter is used for the first time: blocks entered, and whether the last is left."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = {id(parameter): name for name, parameter in network.named_parameters()}
        self.entered: list[int] = []
        self.left: list[int] = []
        self.found: dict[str, tuple[int, int]] = {}
        for number, block in enumerate(blocks(network), 1):
            block.register_forward_pre_hook(lambda *_, number=number: self.entered.append(number))
            block.register_forward_hook(lambda *_, number=number: self.left.append(number))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if id(tensor) in self.names and getattr(func, "__name__", "") != "__get__":
                    self.found.setdefault(self.names[id(tensor)], (len({*self.entered}), len({*self.left})))
        return func(*args, **(kwargs or {}))

    def depths(self) -> dict[str, int]:
        """In block i: i blocks entered, i - 1 left. Outside, with i of n left: 0, the depth of the next, or n + 1."""
        return {name: entered if left < entered else left + (left > 0) for name, (entered, left) in self.found.items()}


def depths_by_use(encoder: nn.Module) -> dict[str, int]:
    watched = copy.deepcopy(encoder).eval()
    uses = FirstUses(watched)
    with uses, torch.no_grad():
        watched(inputs_of(watched))
    order = [*dict.fromkeys(uses.entered)]
    assert order == [*range(1, len(blocks(encoder)) + 1)], "blocks are used in the order in which they are found"
    return uses.depths()


@dataclass
class Case:
    """An encoder, its number of blocks, and the depths by use of its parameters."""

    encoder: Any
    blocks: int
    used: dict[str, int]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    modality, library, kind = request.param
    encoder = BUILDERS[library](kind, tmp_path_factory.mktemp(kind), modality)
    return Case(encoder, CASES[request.param], depths_by_use(encoder))


def test_depth_is_the_order_of_use(case: Case) -> None:
    assert len(blocks(case.encoder)) == case.blocks
    assert {name: depth for name, _, depth in parameter_depths(case.encoder) if name in case.used} == case.used
    missing = {name for name, _ in case.encoder.named_parameters()} - case.used.keys()
    assert len(missing) <= 0.1 * len(case.used), "libraries pack few weights out of sight"


_SIDE_BY_SIDE = {"hrnet", "twins", "crossvit", "coat", "efficientvim"}
"""Modules of timm whose parts of one class stand side by side, or before each of several stages."""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # of the libraries' constructors
@pytest.mark.parametrize("module", sorted({*timm.list_modules()} - _SIDE_BY_SIDE))
def test_depth_is_the_order_of_use_in_every_family(module: str) -> None:
    """But for tokens and positions that join after the first blocks, and a last convolution that is scaled by attention."""
    with torch.device("meta"):
        network: Any = timm.create_model(timm.list_models(module=module)[0], num_classes=0).eval()
        uses = FirstUses(network)
        with uses, torch.no_grad():
            network(torch.zeros(1, *network.pretrained_cfg["input_size"]))
    assert [*dict.fromkeys(uses.entered)] == [*range(1, len(blocks(network)) + 1)]
    used = uses.depths()
    misplaced = [key for key, _, depth in parameter_depths(network) if used.get(key, depth) != depth]
    assert [key for key in misplaced if not re.search(r"token|pos_embed|final_conv", key)] == []


def test_the_lowest_blocks_are_frozen_with_all_below_them(case: Case) -> None:
    """A gradient reaches what is used after the last frozen block, and nothing else; what is frozen does not drop out."""
    encoder = copy.deepcopy(case.encoder)
    lowest = max(1, case.blocks // 2)
    tower = Tower(encoder, LinearHead(encoder.feature_dim, embed_dim=2)).train()
    tower.to(next(encoder.parameters()).device)
    tower.freeze(lowest)
    assert not tower.frozen
    tower(inputs_of(encoder)).square().sum().backward()
    reached = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert reached & case.used.keys() == {name for name, depth in case.used.items() if depth > lowest}
    below = [module for module, depth in module_depths(encoder).items() if depth <= lowest]
    above = [module for module, depth in module_depths(encoder).items() if depth > lowest]
    assert not any(module.training for module in below)
    assert all(module.training for module in (*above, tower.head, encoder))


def test_a_network_without_blocks_has_none() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert blocks(layers) == []
    assert {depth for _, _, depth in parameter_depths(layers)} == {0}


def test_more_blocks_than_there_are_cannot_be_frozen() -> None:
    tower = Tower(SmallText(width=8, heads=2, layers=2), LinearHead(8, embed_dim=2))
    with pytest.raises(UserError, match="the encoder SmallText has 2 blocks"):
        tower.freeze(3)
    assert all(parameter.requires_grad for parameter in tower.parameters())


def test_a_copy_keeps_what_is_frozen() -> None:
    tower = Tower(SmallText(width=8, heads=2, layers=2, dropout=0.5), LinearHead(8, embed_dim=2))
    tower.freeze(1)
    copied = copy.deepcopy(tower)
    copied.train()
    assert [block.training for block in blocks(copied.encoder)] == [False, True]
    assert not {*copied.modules()} & {*tower.modules()}
