"""Low-rank adapters, the same for the encoders of every library: what they start as, what they train, what they merge into."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import mmcl
from mmcl.encoders import ADAPTERS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.adapters import (
    Adapter,
    adapt,
    adapters,
    frozen_weights,
    merge_adapters,
    merged_state_dict,
    remove_adapters,
)
from mmcl.encoders.blocks import blocks
from mmcl.encoders.low_rank import LoRA
from mmcl.encoders.tower import Encoder, Tower
from mmcl.errors import UserError
from tests.encoders import tiny
from tests.encoders.cases import Case, inputs_of
from tests.narrow import of_type

TYPES = ["lora", "dora"]
OWN: dict[str, dict[str, Any]] = {
    "small_cnn": {"image_size": 16},
    "strided_cnn": {"image_size": 16, "widths": [4, 8], "blocks": [1, 2]},
    "small_text": {"width": 8, "heads": 2, "layers": 2},
}


@pytest.fixture(params=OWN)
def own(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    registry = TEXT_ENCODERS if request.param == "small_text" else IMAGE_ENCODERS
    return of_type(Encoder, registry.build(request.param, OWN[request.param], *([None] if registry is TEXT_ENCODERS else [])))


def shake(network: nn.Module) -> None:
    """Adapters far from their initial values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, adapter in adapters(network):
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def check_encoder(encoder: Encoder, name: str) -> None:
    """Everything that holds for every encoder and type of adapter."""
    inputs, keys = inputs_of(encoder), encoder.state_dict().keys()
    before = encoder.eval()(inputs).detach()
    originals = {key: value.clone() for key, value in encoder.state_dict().items()}
    repeated = blocks(encoder)

    adapted = adapt(encoder, name=name, rank=2)
    assert all(torch.equal(value, originals[key]) for key, value in merged_state_dict(encoder).items()), "it starts as it was"
    torch.testing.assert_close(encoder(inputs), before)
    assert [weight for weight, _ in adapters(encoder)] == adapted
    assert blocks(encoder) == repeated, "depth and sharding do not depend on adapters"
    learning = {key for key, p in encoder.named_parameters() if p.requires_grad}
    frozen = {key.removeprefix("encoder.") for key in frozen_weights(Tower(encoder, nn.Identity()))}
    assert learning == {key for key, _ in encoder.named_parameters()} - frozen

    encoder.train()(inputs).square().sum().backward()
    reached = {key for key, p in encoder.named_parameters() if p.grad is not None}
    assert reached == learning, "every adapter has a gradient, and nothing else"
    for weight, adapter in adapters(encoder):
        assert of_type(LoRA, adapter).B.grad.any(), weight  # type: ignore[union-attr]
    torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.01).step()

    shake(encoder)
    after = encoder.eval()(inputs).detach()
    assert (after - before).abs().max() > 1e-3 * before.abs().max()
    predicted = {key: value.clone() for key, value in merged_state_dict(encoder.train()).items()}
    merge_adapters(encoder)
    merged = encoder.state_dict()
    assert merged.keys() == keys == predicted.keys()
    assert all(torch.equal(merged[key], predicted[key]) for key in keys), "merging changes no weight by a bit"
    assert {key for key in keys if not torch.equal(merged[key], originals[key])} == set(adapted), "statistics included"
    torch.testing.assert_close(encoder.eval()(inputs), after)


@pytest.mark.parametrize("name", TYPES)
def test_adapters_of_an_image_encoder(image_case: Case, name: str) -> None:
    check_encoder(copy.deepcopy(image_case.encoder), name)


@pytest.mark.parametrize("name", TYPES)
def test_adapters_of_a_text_encoder(text_case: Case, name: str) -> None:
    check_encoder(copy.deepcopy(text_case.encoder), name)


@pytest.mark.parametrize("name", TYPES)
def test_adapters_of_our_own_encoders(own: Encoder, name: str) -> None:
    check_encoder(own, name)


def test_attention_and_mlp_of_the_blocks_are_adapted_unless_told_otherwise(text_case: Case) -> None:
    """No embedding, norm, pooler or projection to the features."""
    kept = ("embed", "norm", "ln_", "pooler", "bias", "projection", "wte", "wpe")
    adapted = adapt(copy.deepcopy(text_case.encoder), rank=1)
    assert not [name for name in adapted if any(word in name for word in kept)]
    assert {"0", "1"} <= {part for name in adapted for part in name.split(".")}, "of both blocks"
    assert len(adapted) >= 8


def reference(name: str, weight: Tensor, tensors: dict[str, Tensor], scale: float) -> Tensor:
    """The equations of the papers by loops over the elements of the matrix, one row at a time."""
    rows = []
    for o, row in enumerate(weight.flatten(1)):
        changed = row + scale * torch.stack([(tensors["B"][o] * tensors["A"][:, i]).sum() for i in range(len(row))])
        if name == "dora":
            norm = sum(float(x) ** 2 for x in changed.detach()) ** 0.5
            changed = tensors["magnitude"][o] * changed / norm
        rows.append(changed)
    return torch.stack(rows).view_as(weight)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(3, 4, 2)], ids=repr)
def test_value_and_gradient_are_those_of_the_papers(name: str, layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double()
    original = of_type(Tensor, layer.weight).detach().clone()
    adapt(layer, name=name, rank=2, alpha=3)
    shake(layer)
    [(_, adapter)] = adapters(layer)
    weight = of_type(Tensor, layer.weight)
    tensors = {key: p.detach().clone().requires_grad_() for key, p in adapter.named_parameters()}
    expected = reference(name, original, tensors, 3 / 2)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-14)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (weight * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, tensors[key].grad, rtol=1e-11, atol=1e-13)


def as_peft(kind: str, folder: Path, ours: Encoder, name: str) -> Any:
    """Peft's own model with our adapters' tensors."""
    paths = {weight.removeprefix("model.").removesuffix(".weight"): one for weight, one in adapters(ours)}
    options = {"use_dora": name == "dora", "fan_in_fan_out": kind == "gpt2", "target_modules": list(paths)}
    model = transformers.AutoModel.from_pretrained(folder)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for path, adapter in paths.items():
            layer: Any = theirs.get_submodule(f"base_model.model.{path}")
            layer.lora_A["default"].weight.copy_(adapter.A)
            layer.lora_B["default"].weight.copy_(adapter.B)
            if name == "dora":
                layer.lora_magnitude_vector["default"].weight.copy_(adapter.magnitude)
    return theirs.eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["clip", "bert", "gpt2"])
def test_features_and_gradients_equal_those_of_peft(kind: str, name: str, tmp_path: Path) -> None:
    tiny.transformers_model(kind, tmp_path)
    ours = of_type(Encoder, TEXT_ENCODERS.build("transformers", {"name": str(tmp_path)})).eval()
    adapt(ours, name=name, rank=2, alpha=6)
    shake(ours)
    theirs = as_peft(kind, tmp_path, ours, name)
    tokens = inputs_of(ours)
    features = ours(tokens)
    inner = copy.deepcopy(ours)
    inner.model = theirs.base_model.model
    expected = inner(tokens)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    features.square().sum().backward()
    expected.square().sum().backward()
    for weight, adapter in adapters(ours):
        layer: Any = theirs.get_submodule(f"base_model.model.{weight.removeprefix('model.').removesuffix('.weight')}")
        found = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
        if name == "dora":
            found["magnitude"] = layer.lora_magnitude_vector["default"].weight
        for key, parameter in adapter.named_parameters():
            scale = float(found[key].grad.abs().max())
            torch.testing.assert_close(parameter.grad, found[key].grad, rtol=1e-4, atol=1e-4 * scale, msg=f"{weight}.{key}")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in range(2)])
        self.scale = nn.Parameter(torch.ones(4))
        self.token = nn.Parameter(torch.ones(1, 1, 4))


def test_where_chooses_matrices_by_name() -> None:
    assert adapt(Net(), rank=1) == ["blocks.0.fc.weight", "blocks.1.fc.weight"]
    assert adapt(Net(), rank=1, where=r"stem|1\.fc") == ["stem.weight", "blocks.1.fc.weight"]
    assert adapt(Net(), rank=1, where=r".") == ["stem.weight", "blocks.0.fc.weight", "blocks.1.fc.weight"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"where": "attn"},
            r"where is 'attn', which matches no matrix of the network; some that there are: blocks\.0\.fc\.weight$",
        ),
        ({"where": "norm"}, r"only 4 vectors, such as blocks\.0\.norm\.weight"),
        ({"where": "scale"}, r"only 1 vector, such as scale"),
        ({"where": "(stem"}, r"where is '\(stem', which is not a regular expression \(missing \), unterminated subpattern"),
        ({"rank": 0}, "rank 0 must be 1 or more"),
        ({"alpha": 0}, "alpha 0 above 0"),
        ({"alpha": float("nan")}, "alpha nan above 0"),
        ({"dropout": 1.0}, "dropout 1.0 from 0 to below 1"),
        ({"rank": "many"}, "rank of adapter 'lora' must be a whole number, not 'many'"),
        ({"rnk": 4}, "did you mean 'rank'"),
        ({"name": "dorra"}, "did you mean 'dora'"),
    ],
)
def test_what_cannot_be_is_one_clear_line_and_changes_nothing(given: dict[str, Any], message: str) -> None:
    net = Net()
    with pytest.raises(UserError, match=message) as caught:
        adapt(net, **given)
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.state_dict().keys() == Net().state_dict().keys()


@pytest.mark.parametrize("change", [merge_adapters, remove_adapters])
def test_a_copy_and_its_original_are_independent(change: Callable[[nn.Module], None]) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    plain, rows = copy.deepcopy(net), torch.ones(2, 3)
    adapt(net, name="dora", rank=2)
    shake(net)
    twin = copy.deepcopy(net)
    expected = net(rows)
    change(twin)
    torch.testing.assert_close(net(rows), expected)
    torch.testing.assert_close(twin(rows), expected if change is merge_adapters else plain(rows))
    assert type(twin[0]) is nn.Linear
    assert twin.state_dict().keys() == plain.state_dict().keys()
    net(rows).sum().backward()
    change(net)
    assert type(net[0]) is nn.Linear


def test_networks_that_cannot_be_adapted() -> None:
    with pytest.raises(UserError, match="no linear layer and no convolution"):
        adapt(nn.LayerNorm(4))
    net = Net()
    adapt(net)
    with pytest.raises(UserError, match="adapted already: merge its adapters first"):
        adapt(net)
    merge_adapters(net)
    adapt(net, name="dora")
    tied = Net()
    tied.stem.weight = tied.blocks[0]["fc"].weight  # type: ignore[index]
    with pytest.raises(UserError, match=r"stem\.weight is shared by several layers"):
        adapt(tied, where="stem")
    shared = Net()
    shared.blocks.append(shared.blocks[0])
    assert adapt(shared) == ["blocks.0.fc.weight", "blocks.1.fc.weight"], "a layer that is used twice is one layer"


def test_of_a_tower_only_the_encoder_is_adapted() -> None:
    tower = Tower(IMAGE_ENCODERS.build("small_cnn", OWN["small_cnn"]), nn.Linear(3, 2))
    mmcl.adapt(tower, rank=2)
    assert not [m for m in tower.train().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    assert {p for p in tower.parameters() if p.requires_grad} == {
        *tower.head.parameters(),
        *(p for _, adapter in adapters(tower) for p in adapter.parameters()),
    }
    assert frozen_weights(nn.ModuleDict({"image": tower})).keys() == {
        f"image.encoder.{name}" for name, p in tower.encoder.named_parameters() if not p.requires_grad
    }


def test_batch_norms_keep_their_statistics_until_they_are_trained_again() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)).train()
    adapt(net)
    before = copy.deepcopy(dict(net.named_buffers()))
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([net.train()(row[None]) for row in rows])
    torch.testing.assert_close(net.train()(rows), alone)
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    merge_adapters(net)
    net.requires_grad_(True).train()(rows)
    assert not torch.equal(net[1].get_buffer("running_mean"), before["1.running_mean"])


def test_dropout_drops_inputs_of_the_adapter_alone_and_not_when_merging() -> None:
    net = nn.Linear(40, 40, bias=False)
    original = net.weight.detach().clone()
    adapt(net, rank=3, dropout=0.5)
    shake(net)
    change = net.eval().weight - original
    torch.manual_seed(0)
    dropped = net.train().weight - original
    is_dropped = (dropped == 0).all(0)
    assert 5 < is_dropped.sum() < 35
    torch.testing.assert_close(dropped[:, ~is_dropped], 2 * change[:, ~is_dropped], rtol=1e-4, atol=1e-5)
    merge_adapters(net.train())
    torch.testing.assert_close(net.weight - original, change)


def test_a_row_of_zeros_stays_finite() -> None:
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight[0] = 0
    adapt(net, name="dora")
    net(torch.ones(1, 3)).sum().backward()
    for _, adapter in adapters(net):
        assert all(torch.isfinite(of_type(Tensor, p.grad)).all() for p in adapter.parameters())


def test_half_precision_weights_have_adapters_in_full_precision() -> None:
    """A change too small for the weights' type adds up in the adapter."""
    net = nn.Linear(8, 8).bfloat16()
    adapt(net)
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    assert net(torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    shake(net)
    weight = net.weight.detach().clone()
    merge_adapters(net)
    assert net.weight.dtype == torch.bfloat16
    assert torch.equal(net.weight, weight)


def test_mixed_precision_uses_the_weight_of_after_merging() -> None:
    net = nn.Linear(16, 16)
    adapt(net)
    shake(net)
    rows = torch.randn(4, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = net(rows)
        merge_adapters(net)
        assert torch.equal(net(rows), before)


class Scale(Adapter):
    """Multiplies every row by a trained number."""

    def __init__(self, matrix_OI: Tensor, *, start: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.full((len(matrix_OI), 1), float(start)))

    def change(self, matrix_OI: Tensor) -> Tensor:
        return matrix_OI * self.factor


class NoAdapter(nn.Module):
    """A parametrization that is not derived from `Adapter`."""

    def __init__(self, matrix_OI: Tensor, *, start: float = 1.0):
        super().__init__()


@pytest.fixture
def registered() -> Iterator[None]:
    ADAPTERS.register("scale", Scale)
    ADAPTERS.register("no_adapter", NoAdapter)
    yield
    for name in ("scale", "no_adapter"):
        del ADAPTERS._table[name], ADAPTERS._plugins[name]


@pytest.mark.usefixtures("registered")
def test_another_type_may_be_registered() -> None:
    net = Net()
    original = net.stem.weight.detach().clone()
    assert adapt(net, name="scale", where="stem", start=2) == ["stem.weight"]
    assert torch.equal(net.stem.weight, 2 * original)
    with pytest.raises(UserError, match="'no_adapter' is not a subclass of"):
        adapt(Net(), name="no_adapter")
