"""Adapters: small trained changes of the frozen weight matrices of an encoder, which are merged into them at the end.

An adapter is a parametrization (`torch.nn.utils.parametrize`) of a parameter, not a replacement of a layer, so it works in the
same way for the encoders of every library, whatever their layers are called. It reaches parameters that no layer owns, such as
the `in_proj_weight` of torch's attention, and merging restores the plain state dict.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmcl.encoders import ADAPTERS
from mmcl.encoders.blocks import blocks
from mmcl.encoders.parameter_roles import parameter_roles
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.terminal import counted

_SHOWN = 6
"""Names in the message about a pattern that matches nothing."""


class Adapter(nn.Module):
    """Base of all adapters: a trained change of one frozen weight.

    A subclass is built as `Subclass(matrix_OI, *, ...)`, where `matrix_OI` is the frozen weight as a matrix, outputs x inputs
    (a convolution kernel as out x rest). Before the first step, the changed matrix must be the frozen one.

    Attributes:
        is_transposed: whether the weight is stored as inputs x outputs, as in GPT-2.
    """

    is_transposed = False

    @abstractmethod
    def change(self, matrix_OI: Tensor) -> Tensor:
        """Return the changed matrix [O, I]."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight, in the shape and dtype of the frozen one.

        Mixed precision does not apply here, so that a layer rounds the same weight as after merging.
        """
        with torch.autocast(weight.device.type, enabled=False):
            changed = self.change(as_matrix(weight, is_transposed=self.is_transposed))
        changed = changed.T if self.is_transposed else changed.view_as(weight)
        return changed.to(weight.dtype)


def as_matrix(weight: Tensor, *, is_transposed: bool) -> Tensor:
    """Return a weight as a matrix, outputs x inputs."""
    return weight.T if is_transposed else weight.flatten(1)


def adapt(module: nn.Module, *, name: str = "lora", where: str | None = None, **args: Any) -> list[str]:
    """Freeze a network and add adapters to its weight matrices, in place. Train what then requires a gradient.

    The network computes what it did before, until its adapters are trained. Norms and biases are frozen too, and batch norms
    keep their statistics in training mode. Save it with `mmcl.merge_adapters`.

    Args:
        module: the network, with trained weights. Only the encoder of a `Tower` is frozen and adapted; its head is trained
            as it is.
        name: type of the adapters: "lora" (Hu et al., 2021), "dora" (Liu et al., 2024), or that of a plug-in.
        where: regular expression that is searched for in the names of the parameters, such as "attn|mlp". Of the parameters
            that it matches, those with two or more dimensions are adapted. None adapts the linear layers and convolutions
            of the repeated blocks, such as attention and MLP of a transformer; or of the whole network if it has no blocks.
        **args: arguments of the adapters: `rank`, `alpha` and `dropout` of LoRA and DoRA, see `mmcl list adapters --args`.

    Returns:
        The names of the adapted parameters.

    Raises:
        UserError: the network is adapted already, `where` matches no matrix, or an argument does not exist or is out of range.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
        >>> adapt(network, rank=2)
        ['0.weight', '1.weight']
        >>> [tuple(p.shape) for p in network.parameters() if p.requires_grad]
        [(2, 6), (6, 2), (2, 6), (6, 2)]
    """
    network = module.encoder if isinstance(module, Tower) else module
    if any(True for _ in adapters(network)):
        raise UserError("the network is adapted already: merge its adapters first (mmcl.merge_adapters)")
    built = {}
    for path in _chosen(network, where):
        owner, _, own_name = _placed(network, path)
        is_transposed = type(owner).__name__.endswith("Conv1D")
        weight = getattr(owner, own_name).detach()
        built[path] = ADAPTERS.build(name, args, as_matrix(weight, is_transposed=is_transposed))
        if not isinstance(built[path], Adapter):
            raise UserError(f"adapter {name!r} is not a subclass of mmcl.encoders.adapters.Adapter: derive it from that")
        built[path].is_transposed = is_transposed
    network.requires_grad_(False)
    if isinstance(module, Tower):
        module.freeze_statistics(network)
    else:
        for norm in network.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.register_forward_pre_hook(_keep_statistics)
    for path, adapter in built.items():
        owner, _, own_name = _placed(network, path)
        parametrize.register_parametrization(owner, own_name, adapter)
    return list(built)


def merge_adapters(module: nn.Module) -> None:
    """Replace every adapted weight by its changed value, in place. The state dict then has the keys of before `adapt`.

    The network stays frozen. It computes what it did with its adapters in evaluation mode, up to rounding.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(6, 6)
        >>> names = adapt(layer, rank=2)
        >>> merge_adapters(layer)
        >>> sorted(layer.state_dict())
        ['bias', 'weight']
    """
    for owner in list(module.modules()):
        for name, weights in _adapted(owner):
            weights.eval()  # without dropout
            _unshare_class(owner)
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)


def remove_adapters(module: nn.Module) -> None:
    """Remove all adapters of a network, in place: it then has the frozen weights that they change."""
    for owner in list(module.modules()):
        for name, _ in _adapted(owner):
            _unshare_class(owner)
            parametrize.remove_parametrizations(owner, name, leave_parametrized=False)


def adapters(module: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Yield the adapters of a network, each with the name of the parameter that it adapts."""
    for path, owner in module.named_modules():
        for name, weights in _adapted(owner):
            yield f"{path}.{name}".removeprefix("."), weights[0]  # type: ignore[misc]


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that a network would have after `merge_adapters`, without changing it."""
    state: dict[str, Tensor] = dict(module.state_dict())
    for path, owner in module.named_modules():
        for name, weights in _adapted(owner):
            prefix = f"{path}.".removeprefix(".")
            state = {key: x for key, x in state.items() if not key.startswith(f"{prefix}parametrizations.{name}.")}
            mode = weights.training
            state[f"{prefix}{name}"] = weights.eval()()
            weights.train(mode)
    return state


def frozen_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of towers that training leaves as they are: frozen ones, and those below adapters."""
    found: dict[str, nn.Parameter] = {}
    for path, tower in module.named_modules():
        if not isinstance(tower, Tower):
            continue
        trained = {p for _, adapter in adapters(tower.encoder) for p in adapter.parameters()}
        kept = {p for p in tower.encoder.parameters() if p not in trained} if trained else set()
        prefix = f"{path}.".removeprefix(".")
        found |= {f"{prefix}{name}": p for name, p in tower.named_parameters() if p in kept or name in tower.fixed}
    return found


def _keep_statistics(norm: nn.Module, inputs: object) -> None:
    """Hook of batch norms: as long as they are frozen, they normalize by the statistics that they were trained with.

    The training loop of a plain module calls `train` on it, which only its own class could override.
    """
    if not any(parameter.requires_grad for parameter in norm.parameters()):
        norm.eval()


def _adapted(owner: nn.Module) -> list[tuple[str, parametrize.ParametrizationList]]:
    """Return the adapted parameters of a module's own, by name."""
    if not parametrize.is_parametrized(owner):
        return []
    found: Any = owner.parametrizations
    return [(name, weights) for name, weights in found.items() if isinstance(weights[0], Adapter)]


def _unshare_class(owner: nn.Module) -> None:
    """Give a module a class of its own: its copies share the class whose property computes the adapted weight, and which torch
    changes when it removes a parametrization."""
    kind = type(owner)
    members = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    owner.__class__ = type(kind.__name__, kind.__bases__, members)


def _placed(network: nn.Module, path: str) -> tuple[nn.Module, str, str]:
    """Return the module that owns a parameter, its name in the network, and that of the parameter in the module."""
    place, _, name = path.rpartition(".")
    return network.get_submodule(place), place, name


def _chosen(network: nn.Module, where: str | None) -> list[str]:
    """Return the names of the parameters to adapt."""
    usual = _usual_matrices(network)
    chosen = usual if where is None else _matches(network, where, usual)
    if not chosen:
        raise UserError("the network has no linear layer and no convolution that could be adapted")
    owners = Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
    tied = [name for name in chosen if owners[id(network.get_parameter(name))] > 1]
    if tied:
        raise UserError(f"{tied[0]} is shared by several layers, of which an adapter would change one: leave it out of `where`")
    return chosen


def _usual_matrices(network: nn.Module) -> list[str]:
    """Return the matrices of the repeated blocks, or all if there are none."""
    matrices = {name: p for name, p, role in parameter_roles(network) if role == "matrix" and _is_matrix(p)}
    in_blocks = {p for block in blocks(network) for p in block.parameters()}
    return [name for name, p in matrices.items() if p in in_blocks] or list(matrices)


def _matches(network: nn.Module, where: str, usual: list[str]) -> list[str]:
    try:
        pattern = re.compile(where)
    except re.error as error:
        raise UserError(f"where is {where!r}, which is not a regular expression ({error})") from None
    own = {name: p for name, p in network.named_parameters() if ".parametrizations." not in f".{name}"}
    found = {name: p for name, p in own.items() if pattern.search(name)}
    matrices = [name for name, p in found.items() if _is_matrix(p)]
    if not matrices:
        kinds = {re.sub(r"\d+", "0", name): name for name in reversed(usual)}
        vectors = f" (only {counted(len(found), 'vector')}, such as {next(iter(found))})" if found else ""
        there = ", ".join(list(reversed(kinds.values()))[:_SHOWN]) or "none"
        raise UserError(f"where is {where!r}, which matches no matrix of the network{vectors}; some that there are: {there}")
    return matrices


def _is_matrix(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1
