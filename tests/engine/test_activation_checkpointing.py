"""Activation checkpointing of the encoders of every library: the same gradient from less memory."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.adapters import adapt, adapters
from mmcl.encoders.blocks import blocks
from mmcl.encoders.tower import Encoder, Tower
from mmcl.engine.activation_checkpointing import ActivationCheckpointing
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.runs.doctor import diagnose
from mmcl.runs.plan import make_plan
from mmcl.runs.run import train
from tests.encoders.cases import IMAGES, TEXT_MODELS, build_case, inputs_of
from tests.engine.tiny import tiny_config
from tests.faults.runs import small_vocabulary
from tests.narrow import of_type

OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "strided_cnn": ("image", {"image_size": 16, "widths": [4, 8], "blocks": [1, 2]}),
    "small_text": ("text", {"width": 8, "heads": 2, "layers": 3, "dropout": 0.3}),
}
CASES = [
    *(("image", *case) for case in IMAGES),
    *(("text", *case) for case in TEXT_MODELS),
    *((modality, "own", name) for name, (modality, _) in OWN.items()),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    modality, library, kind = request.param
    if library == "own":
        torch.manual_seed(0)
        registry = TEXT_ENCODERS if modality == "text" else IMAGE_ENCODERS
        return of_type(Encoder, registry.build(kind, OWN[kind][1], *([None] if modality == "text" else [])))
    return build_case(library, kind, modality, tmp_path_factory.mktemp(kind)).encoder


class Encode(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, views: Any) -> dict[str, Tensor]:
        return {"a": self.tower.encoder(views["a"])}


State = dict[str, Tensor]


def step(encoder: Encoder, *, checkpointed: bool, pieces: int = 1, adapter: str | None = None) -> State:
    """Gradients and buffers after a step in float64 and training mode, with the state of the generator."""
    encoder = copy.deepcopy(encoder).double()
    if adapter:
        torch.manual_seed(1)
        adapt(encoder, name=adapter, rank=2, dropout=0.3)
        for _, one in adapters(encoder):
            nn.init.normal_(one.B, std=0.3)  # type: ignore[arg-type]
    tower = Tower(encoder, nn.Identity()).train()
    if checkpointed:
        checkpointing = ActivationCheckpointing({"image": tower})
    inputs = inputs_of(encoder)
    inputs = inputs.double() if isinstance(inputs, Tensor) else inputs
    inputs = torch.cat([inputs, inputs.flip(2)]) if isinstance(inputs, Tensor) else inputs
    cached_backward(
        Encode(tower),
        split_views({"a": inputs}, len(inputs) // pieces),
        loss=lambda rows: (rows["a"] @ rows["a"].T).logsumexp(1).sum(),
        backward=torch.Tensor.backward,
        seed=torch.default_generator.manual_seed,
    )
    if checkpointed:
        checkpointing.check()
    grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return {**grads, **dict(encoder.named_buffers()), "generator": torch.get_rng_state()}


@pytest.mark.parametrize(
    "way",
    [pytest.param({}, marks=pytest.mark.long), {"pieces": 2}, pytest.param({"adapter": "lora"}, marks=pytest.mark.long)],
    ids=str,
)
def test_the_gradient_is_the_same(encoder: Encoder, way: dict[str, Any]) -> None:
    """With dropout, where the library has it; batch norms count each batch once."""
    expected = step(encoder, checkpointed=False, **way)
    if not blocks(encoder):
        with pytest.raises(UserError, match=r"^train\.checkpoint_activations: the image encoder .* has no blocks"):
            step(encoder, checkpointed=True, **way)
        return
    found = step(encoder, checkpointed=True, **way)
    assert found.keys() == expected.keys()
    assert any(name.endswith("weight") or name.endswith(".B") for name in found)
    # Gradients that are zero but for rounding, such as those of biases of keys, are compared on the scale of the others.
    largest = max(float(value.abs().max()) for name, value in expected.items() if name != "generator")
    for name, value in expected.items():
        atol = 0.0 if name == "generator" else 1e-14 * largest
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=atol, msg=functools.partial("{}: {}".format, name))


def stored_bytes(encoder: Encoder, *, checkpointed: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, without weights: what autograd saves, and inputs of blocks."""
    encoder = copy.deepcopy(encoder)
    tower = Tower(encoder, nn.Identity()).train()
    weights = {x.untyped_storage().data_ptr() for x in (*encoder.parameters(), *encoder.buffers())}
    kept: dict[int, Any] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that its place is not used again
        return tensor

    def save_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                save(tensor)

    if checkpointed:
        ActivationCheckpointing({"image": tower})
        for block in blocks(encoder):
            block.register_forward_pre_hook(save_inputs)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        encoder(inputs_of(encoder))
    return sum(storage.nbytes() for storage in kept.values())


def test_less_is_stored(encoder: Encoder) -> None:
    if blocks(encoder):
        assert stored_bytes(encoder, checkpointed=True) < 0.9 * stored_bytes(encoder, checkpointed=False)


def test_memory_is_that_of_the_inputs_of_blocks() -> None:
    """A deep transformer: what a block stores beside its input is 14 times as large, and is not stored."""
    args = {"width": 32, "heads": 2, "layers": 16, "context_length": 40}
    deep = of_type(Encoder, TEXT_ENCODERS.build("small_text", args, None))
    whole, less = (stored_bytes(deep, checkpointed=checkpointed) for checkpointed in (False, True))
    assert less < whole / 8


class Steps(nn.Module):
    """Blocks whose layers are called by their owner."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)}) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["two"](block["one"](x).relu())  # type: ignore[index]
        return x


class InPlace(nn.Module):
    """Blocks that change their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.SiLU(inplace=True), nn.Linear(3, 3)) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x + 0)
        return out


@pytest.mark.parametrize(
    ("network", "message"),
    [(Steps(), "takes the layers out of its blocks"), (InPlace(), "the image encoder changes the inputs of its Sequential")],
)
def test_what_would_be_wrong_or_without_effect_is_refused(network: Any, message: str) -> None:
    tower = Tower(network, nn.Identity()).train()
    checkpointing = ActivationCheckpointing({"image": tower})

    def first_step() -> None:
        tower.encoder(torch.randn(4, 3)).sum().backward()
        checkpointing.check()

    with pytest.raises(UserError, match=message) as caught:
        first_step()
    assert "\n" not in str(caught.value)


def test_frozen_encoders_and_evaluation_are_left_alone() -> None:
    build = TEXT_ENCODERS["small_text"]
    frozen, trained = (Tower(build(None, **OWN["small_text"][1]), nn.Identity()) for _ in range(2))
    frozen.freeze()
    ActivationCheckpointing({"image": frozen, "text": trained})
    assert not [block for block in blocks(frozen.encoder) if "forward" in vars(block)]
    tokens = inputs_of(trained.encoder)
    with torch.no_grad():
        assert not trained.eval()(tokens).requires_grad


@pytest.fixture(autouse=True)
def _small_vocabulary(request: pytest.FixtureRequest) -> Iterator[None]:
    with small_vocabulary() if "folder" in request.fixturenames else nullcontext():
        yield


NORMED = ("--image.encoder", "{name: strided_cnn, args: {image_size: 16, widths: [4, 8], feature_dim: 8, blocks: [1, 1]}}")
DEEP = ("--text.encoder.args.layers", "3", "--text.encoder.args.dropout", "0.2")
ON = ("--train.checkpoint_activations", "true")


def test_a_run_learns_the_same(folder: Path, tmp_path: Path) -> None:
    """It is no other run: either may continue the other."""
    found = {}
    for name, flags in (("off", ()), ("on", ON)):
        train(tiny_config(folder, tmp_path / name, *NORMED, *DEEP, *flags, "--train.micro_batch", "5"))
        found[name] = load_file(tmp_path / name / "model/model.safetensors"), read_log(tmp_path / name / "metrics.jsonl")
    for key, value in found["off"][0].items():
        torch.testing.assert_close(found["on"][0][key], value, rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in found["on"][1]] == pytest.approx([row["loss"] for row in found["off"][1]], rel=1e-5)


def test_encoders_without_blocks_are_named_before_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the image encoder small_cnn has no blocks that could"):
        make_plan(tiny_config(folder, tmp_path / "run", *ON), 1)
    make_plan(tiny_config(folder, tmp_path / "run", *ON, "--image.freeze", "true"), 1)


def test_a_doctor_says_where_it_has_no_effect(folder: Path, tmp_path: Path) -> None:
    frozen = ("--image.freeze", "true", "--text.freeze", "true")
    warnings = diagnose(tiny_config(folder, tmp_path / "run", *ON, *frozen)).warnings
    assert "train.checkpoint_activations has no effect: all encoders are frozen" in warnings
