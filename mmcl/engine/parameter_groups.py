"""Groups of parameters with a learning rate and weight decay of their own: one implementation for training and own loops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from mmcl.config import GroupConfig, OptimConfig, from_dict
from mmcl.config.setting import check_ranges
from mmcl.encoders.blocks import blocks, parameter_depths
from mmcl.encoders.parameter_roles import Role, parameter_roles
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError

Kind = Literal["decayed", "spared", "muon", "adapters"]
"""decayed: matrices and embedding tables. spared: parameters without weight decay. muon: matrices that Muon trains. adapters:
parts of adapters, which have weight decay only if their group in `optim.groups` gives one."""

_KINDS: Mapping[Kind, str] = {
    "decayed": "matrices, tables",
    "spared": "biases, norms, scales",
    "muon": "matrices by Muon",
    "adapters": "adapters",
}
_SHOWN = 6
"""Names in the message about a pattern that matches nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Parameters that are trained with the same options.

    Attributes:
        name: what they are, in words.
        kind: see `Kind`.
        parameters: in the order of the module.
        lr: peak learning rate.
        weight_decay: weight decay.
        start: share of the run before which they are not trained.
    """

    name: str
    kind: Kind
    parameters: Sequence[nn.Parameter]
    lr: float
    weight_decay: float
    start: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of an encoder: its name, the factor of its learning rate, and whether it waits while what is above is probed."""

    name: str
    scale: float
    waits: bool


_TOP = _Layer("", 1.0, waits=False)


def param_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.2,
    bias_lr: float | None = None,
    layer_decay: float | None = None,
    groups: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    r"""Group the parameters of a network for an optimizer, as training with the same settings does.

    Biases, norms, scales, and embeddings of positions and classes have no weight decay, whatever the library of the encoder.

    Args:
        module: towers, a method, or any network. Names of parameters are those of its `named_parameters`, without "towers.".
        lr: peak learning rate.
        weight_decay: weight decay of matrices and embedding tables.
        bias_lr: learning rate of parameters without weight decay; None uses `lr`.
        layer_decay: factor between the learning rates of a block and the block below it, above 0 and at most 1 (Bao et al.,
            "BEiT", 2022; Clark et al., "ELECTRA", 2020). It acts in the encoder of each tower, or in the whole network if it
            has no towers. With n blocks, block i has the rate $\mathrm{lr} \cdot d^{\,n + 1 - i}$ and embeddings that of i = 0.
        groups: mappings with the key "match", a regular expression that is searched for in names, and "lr", "scale" or
            "weight_decay", or "freeze", as the setting `optim.groups`. A parameter belongs to the first one that matches.

    Returns:
        Dictionaries with "params", "lr", "weight_decay" and "name", for any optimizer of torch. Parameters without gradient are
        left out; those of a group with "freeze" get none from now on.

    Raises:
        UserError: a value is out of range, `match` matches no parameter, or an encoder has no blocks by which to decay.

    Example:
        >>> import mmcl
        >>> model = mmcl.load_model("runs/clip_emoji")
        >>> rates = [{"match": r"^text\.", "scale": 0.1}, {"match": r"\.head\.", "lr": 1e-3}]
        >>> optimizer = torch.optim.AdamW(mmcl.param_groups(model.towers, lr=1e-4, layer_decay=0.75, groups=rates))
        >>> len(optimizer.param_groups)
        15
    """
    settings = tuple(from_dict(GroupConfig, one, f"groups.{number}") for number, one in enumerate(groups))
    config = OptimConfig(lr=lr, weight_decay=weight_decay, bias_lr=bias_lr, layer_decay=layer_decay, groups=settings)
    check_ranges(config)
    freeze_groups(module, config.groups)
    return [as_options(group) for group in group_parameters(module, config)]


def as_options(group: ParameterGroup) -> dict[str, Any]:
    """Return a group as torch's optimizers take it."""
    return {"params": list(group.parameters), "lr": group.lr, "weight_decay": group.weight_decay, "name": group.name}


def freeze_groups(module: nn.Module, groups: Sequence[GroupConfig]) -> None:
    """Freeze the parameters of groups with `freeze`. Raises UserError if a group matches no parameter."""
    found = {parameter for parameter, number in _matches(module, groups).items() if groups[number].freeze}
    frozen = {parameter for parameter in found if parameter.requires_grad}  # those of a teacher never do
    for tower in (one for one in module.modules() if isinstance(one, Tower)):
        tower.fixed |= {name for name, parameter in tower.named_parameters() if parameter in frozen}
    for parameter in frozen:
        parameter.requires_grad_(False)


def group_parameters(module: nn.Module, config: OptimConfig) -> list[ParameterGroup]:
    """Group the parameters that require a gradient, in the order of `optim.groups`, then of layers, then of `Kind`.

    Raises:
        UserError: a group matches nothing, or changes nothing; an encoder has no blocks, or all parameters are frozen; or
            `optim.probe` has nothing to train first, or later.
    """
    rules, layers = _matches(module, config.groups), _layers(module, config)
    found: dict[tuple[int, _Layer, Kind], list[nn.Parameter]] = {}
    for _, parameter, role in parameter_roles(module):
        if parameter.requires_grad:
            rule = rules.get(parameter, len(config.groups))
            layer = layers.get(parameter, _TOP)
            if _has_own_rate(config, rule):
                layer = replace(layer, name="", scale=1.0)
            found.setdefault((rule, layer, _kind(role, config)), []).append(parameter)
    if not found:
        raise UserError("all parameters are frozen, and nothing is trained: freeze fewer")
    _check_effect(config.groups, {(rule, kind) for rule, _, kind in found})
    if config.probe:
        _check_probe(module, layers)
    places, kinds = list(dict.fromkeys(layers.values())), list(_KINDS)
    order = sorted(found, key=lambda key: (key[0], places.index(key[1]) if key[1] in places else -1, kinds.index(key[2])))
    return [_group(config, *key, found[key]) for key in order]


def _group(config: OptimConfig, number: int, layer: _Layer, kind: Kind, parameters: list[nn.Parameter]) -> ParameterGroup:
    rates = {"spared": config.bias_lr, "muon": config.muon_lr}
    lr = (rates.get(kind) or config.lr) * layer.scale
    decay, match = 0.0 if kind == "adapters" else config.weight_decay, ""
    if number < len(config.groups):
        rule = config.groups[number]
        lr = lr * (rule.scale or 1.0) if rule.lr is None else rule.lr
        decay = decay if rule.weight_decay is None else rule.weight_decay
        match = f" ({rule.match})"
    name = ": ".join(filter(None, (layer.name, _KINDS[kind]))) + match + ", later" * layer.waits
    decay = 0.0 if kind == "spared" else decay
    start = config.probe if layer.waits else 0.0
    return ParameterGroup(name=name, kind=kind, parameters=parameters, lr=lr, weight_decay=decay, start=start)


def _kind(role: Role, config: OptimConfig) -> Kind:
    if role in ("other", "adapter"):
        return "spared" if role == "other" else "adapters"
    return "muon" if role == "matrix" and config.muon_lr is not None else "decayed"


def _has_own_rate(config: OptimConfig, number: int) -> bool:
    return number < len(config.groups) and config.groups[number].lr is not None


def _matches(module: nn.Module, groups: Sequence[GroupConfig]) -> dict[nn.Parameter, int]:
    """Return the number of the first group that matches a parameter, for those that one matches.

    Raises:
        UserError: a group matches no parameter.
    """
    names = {name.removeprefix("towers."): parameter for name, parameter in module.named_parameters()}
    found: dict[nn.Parameter, int] = {}
    for number, group in enumerate(groups):
        own = {parameter for name, parameter in names.items() if re.search(group.match, name)} - found.keys()
        if not own:
            kinds = [*{re.sub(r"\d+", "0", name): name for name in reversed(names)}.values()][::-1]
            some = kinds[:: math.ceil(len(kinds) / _SHOWN)]
            raise UserError(
                f"optim.groups.{number}: no parameter that the groups before it leave matches {group.match!r}; some names: "
                f"{', '.join(some)}"
            )
        found |= dict.fromkeys(own, number)
    return found


def _check_effect(groups: Sequence[GroupConfig], used: set[tuple[int, Kind]]) -> None:
    """Raise UserError if a group has options for parameters of which it has none."""
    for number, group in enumerate(groups):
        kinds = {kind for rule, kind in used if rule == number}
        if not kinds and not group.freeze:
            raise UserError(f"optim.groups.{number}: all parameters that match {group.match!r} are frozen; remove it")
        if kinds == {"spared"} and group.weight_decay is not None:
            raise UserError(
                f"optim.groups.{number}: {group.match!r} matches only parameters without weight decay (biases, norms, scales, "
                "positions); remove weight_decay"
            )


def _check_probe(module: nn.Module, layers: Mapping[nn.Parameter, _Layer]) -> None:
    """Raise UserError if there is nothing above the blocks to train first, or nothing that joins later."""
    waits = [p in layers for p in module.parameters() if p.requires_grad and p.ndim > 0]  # a temperature alone learns nothing
    if not any(waits):
        raise UserError("optim.probe: the encoders are frozen, so there is nothing that joins later; remove it")
    if all(waits):
        raise UserError(
            "optim.probe: nothing that follows the blocks of the encoders could learn first; add a head, or remove it"
        )


def _layers(module: nn.Module, config: OptimConfig) -> dict[nn.Parameter, _Layer]:
    """Return the layers of the parameters below the top of their encoders; {} if they are trained as the top is.

    Raises:
        UserError: an encoder has no blocks.
    """
    found: dict[nn.Parameter, _Layer] = {}
    decay, waits = config.layer_decay, config.probe > 0
    if decay is None and not waits:
        return found
    for name, encoder in _encoders(module):
        count = len(blocks(encoder))
        if decay is not None and not count:
            raise UserError(f"optim.layer_decay: {name} has no blocks; freeze it, or remove layer_decay and set optim.groups")
        for _, parameter, depth in parameter_depths(encoder):
            if depth <= count:
                layer = (f"{name} block {depth}" if depth else f"{name} embeddings") if decay else f"{name} encoder"
                found.setdefault(parameter, _Layer(layer, (decay or 1.0) ** (count + 1 - depth), waits))
    return found


def _encoders(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the encoders that are trained with the names of their towers; or the network itself if there are no towers."""
    towers = {name: tower for name, tower in module.named_modules() if isinstance(tower, Tower)}
    for name, tower in towers.items() or [("", module)]:
        encoder = tower.encoder if isinstance(tower, Tower) else tower
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            yield name.removeprefix("towers.") or type(encoder).__name__, encoder
