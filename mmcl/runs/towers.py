"""Towers of a run: built by name, or taken from the model that it starts from with the same or a new head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from mmcl.config import AdapterConfig, ComponentConfig, Config, TowerConfig
from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.adapters import adapt
from mmcl.encoders.embeddings_of import EMBEDDINGS_OF
from mmcl.encoders.heads import MLPHead, NoHead
from mmcl.encoders.tower import GIVEN, Encoder, ImageEncoder, Tower, TowerSpec, build_tower, wrap_encoder
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.methods import METHODS
from mmcl.preprocess import OF_THE_ENCODER

_ENCODERS = {"image": IMAGE_ENCODERS, "text": TEXT_ENCODERS}
_LINEAR = ComponentConfig(name="linear")


def build_towers(config: Config, given: Model | None) -> nn.ModuleDict:
    """Build all towers of a configuration, and add those of the initial model that the method uses.

    Args:
        config: configuration of the run.
        given: the model that `init` names; None for random weights.

    Raises:
        UserError: a tower is missing or given twice, or its new head does not fit the old one.
    """
    configs = {name: tower for name, tower in (("image", config.image), ("text", config.text)) if tower is not None}
    needed = set(METHODS[config.method.name].views.values())  # type: ignore[attr-defined]
    starts = {} if given is None else {name: tower for name, tower in given.towers.items() if name in needed}
    towers = nn.ModuleDict()
    for name in [name for name in ("image", "text") if name in configs or name in starts]:
        tower_config, start = configs.get(name, TowerConfig()), starts.get(name)
        if start is None:
            if tower_config.adapt is not None:
                _require_trained_weights(name, config, tower_config)
            towers[name] = _build(name, tower_config)
        elif tower_config.encoder is not None and config.init_missing == "error":
            raise UserError(f"{name}.encoder and init exclude each other: {config.init} has a {name} tower")
        elif tower_config.encoder is None and tower_config.head is not None:
            towers[name] = _with_new_head(name, start, tower_config)  # type: ignore[arg-type]
        else:
            towers[name] = start
        if tower_config.preprocess:
            _change_preprocess(name, towers[name].encoder, tower_config.preprocess)  # type: ignore[arg-type]
        _freeze(name, towers[name], tower_config.freeze)  # type: ignore[arg-type]
        _freeze_statistics(towers[name], start, config.train.freeze_statistics)  # type: ignore[arg-type]
        if tower_config.adapt is not None:
            _adapt(name, towers[name], tower_config.adapt)  # type: ignore[arg-type]
    return towers


def _freeze(name: str, tower: Tower, what: bool | int) -> None:
    try:
        if what is not False:
            tower.freeze(None if what is True else what)
    except UserError as error:
        raise UserError(f"{name}.freeze is {what}, and {error}: give a smaller number, or true or false") from None


def _freeze_statistics(tower: Tower, start: nn.Module | None, wanted: bool | Literal["auto"]) -> None:
    """Freeze the statistics of what comes from the initial model, its tower `start`; or of the encoder in any case."""
    if tower is start and wanted is not False:
        tower.freeze_statistics(tower)
    elif wanted is True or (wanted == "auto" and start is not None):
        tower.freeze_statistics(tower.encoder)


def with_given_encoders(config: Config, towers: Mapping[str, nn.Module]) -> Config:
    """Return the configuration with the encoder "custom" in each of these towers.

    Its image size and context length are those of the configuration's original encoder.
    """
    for name in towers:
        tower = getattr(config, name) or TowerConfig()
        kept = _ENCODERS[name].parameters(GIVEN).keys()
        args = {key: value for key, value in (tower.encoder.args if tower.encoder else {}).items() if key in kept}
        encoder = ComponentConfig(name=GIVEN, args=args)
        config = replace(config, **{name: replace(tower, encoder=encoder)})  # type: ignore[arg-type]
    return config


def _change_preprocess(name: str, encoder: nn.Module, values: Mapping[str, Any]) -> None:
    if not isinstance(encoder, ImageEncoder):
        raise UserError(f"{name}.preprocess is for images; remove it")
    for field in values:
        if field in OF_THE_ENCODER:
            raise UserError(f"{name}.preprocess.{field} belongs to the encoder; change it in {name}.encoder.args")
    encoder.preprocess = encoder.preprocess.changed(values)


def _build(name: str, config: TowerConfig) -> Tower:
    if config.encoder is None:
        raise UserError(f"{name}.encoder is missing: name an encoder (`mmcl list encoders`)")
    head = config.head or _LINEAR
    spec = TowerSpec(
        modality="image" if name == "image" else "text",
        encoder=config.encoder.name,
        encoder_args=config.encoder.args,
        head=head.name,
        head_args=head.args,
    )
    if config.encoder.name == EMBEDDINGS_OF and "model" in config.encoder.args:
        return wrap_encoder(_embeddings_of(name, config.encoder.args["model"]), spec)
    return build_tower(spec)


def _embeddings_of(name: str, model_name: str) -> Encoder:
    """Return an encoder whose features are the embeddings of a model. Raises UserError if it has no such tower."""
    model = load_model(model_name, device="cpu")
    start: Any = dict(getattr(model, "towers", {})).get(name)  # graphs of ONNX have none
    if start is None:
        raise UserError(f"{name}.encoder.args.model {model_name} has no {name} tower to train with; give a model that has one")
    if model.embedding == "features":
        start = Tower(start.encoder, NoHead(start.encoder.feature_dim), spec=replace(start.spec, head="none", head_args={}))
    encoder: Encoder = _ENCODERS[name][EMBEDDINGS_OF](tower=start, written_by=model.fingerprint)
    return encoder


def _with_new_head(name: str, start: Tower, config: TowerConfig) -> Tower:
    """Return a tower's encoder with a new head, which starts with the first layers of the old head if configured."""
    assert start.spec is not None, "a model that was loaded says how it is built"
    head = config.head or _LINEAR
    spec = TowerSpec(modality=start.spec.modality, encoder=start.spec.encoder, head=head.name, head_args=head.args)
    tower = wrap_encoder(start.encoder, spec)
    if config.init_head_layers:
        _copy_layers(name, start.head, tower.head, config.init_head_layers)
    return tower


def _require_trained_weights(name: str, config: Config, tower: TowerConfig) -> None:
    """Raise UserError for an encoder with random weights, of which an adapter would train a small part."""
    if tower.encoder is None or has_trained_weights(name, tower.encoder):  # the first is refused as missing
        return
    absent = f"{config.init} does not exist" if config.init else "nothing is trained yet"
    takes_weights = "pretrained" in _ENCODERS[name].parameters(tower.encoder.name)
    fix = "set init to a trained model" + (f", or {name}.encoder.args.pretrained" if takes_weights else "")
    raise UserError(f"{name}.adapt changes trained weights, and {absent}: {fix}")


def has_trained_weights(name: str, encoder: ComponentConfig) -> bool:
    """Return True if an encoder of the tower `name` is built with trained weights.

    Those of plug-ins, and modules passed from Python, are taken to be trained: only their authors know.
    """
    encoders, args = _ENCODERS[name], encoder.args
    if encoder.name in (GIVEN, EMBEDDINGS_OF) or encoders.plugin(encoder.name) is not None:
        return True
    pretrained = encoders.parameters(encoder.name).get("pretrained")
    has_weights = pretrained is not None and bool(args.get("pretrained", pretrained.default))
    is_random = "config" in args and not isinstance(args.get("pretrained"), str)
    comes_with_weights = str(args.get("arch", "")).startswith(("local-dir:", "hf-hub:"))
    return (has_weights and not is_random) or comes_with_weights


def _adapt(name: str, tower: Tower, config: AdapterConfig) -> None:
    try:
        adapt(tower, name=config.name, where=config.where, **config.args)
    except UserError as error:
        raise UserError(f"{name}.adapt: {error}") from None


def _copy_layers(name: str, old: nn.Module, new: nn.Module, layers: int) -> None:
    if not isinstance(old, MLPHead) or not isinstance(new, MLPHead):
        raise UserError(f"{name}.init_head_layers is for heads `mlp`: the head of init is {type(old).__name__}; set it to 0")
    try:
        new.prefix(layers).load_state_dict(old.prefix(layers).state_dict())
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}.init_head_layers: the heads differ in their first {layers} layers: {reason}") from None
