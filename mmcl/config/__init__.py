"""Configurations: frozen dataclasses as the only schema, read from and written to YAML; does not import torch.

Precedence: defaults < YAML < flags. A flag is a dotted path into the same tree, and its value is YAML too, so the same checks
apply to both: `--optim.lr 3e-4`, `--image.encoder.args.image_size 48`, `--data.train.path photos/`.
"""

from mmcl.config.convert import from_dict, to_dict, to_yaml
from mmcl.config.data_sections import CropConfig, DataConfig, HardBatchesConfig, ViewConfig
from mmcl.config.flags import parse_flags, parse_value
from mmcl.config.identity import config_hash, flat_settings, flattened, is_decisive, is_within, unflattened
from mmcl.config.read import load_config, read_as
from mmcl.config.schema import Config
from mmcl.config.sections import (
    AdapterConfig,
    AnchorConfig,
    ComponentConfig,
    DistillationConfig,
    EvaluatorConfig,
    FewerTokensConfig,
    GroupConfig,
    MatryoshkaConfig,
    OptimConfig,
    PartConfig,
    SourceConfig,
    TowerConfig,
    TrainConfig,
    refuse_equal_labels,
)

__all__ = [
    "AdapterConfig",
    "AnchorConfig",
    "ComponentConfig",
    "Config",
    "CropConfig",
    "DataConfig",
    "DistillationConfig",
    "EvaluatorConfig",
    "FewerTokensConfig",
    "GroupConfig",
    "HardBatchesConfig",
    "MatryoshkaConfig",
    "OptimConfig",
    "PartConfig",
    "SourceConfig",
    "TowerConfig",
    "TrainConfig",
    "ViewConfig",
    "config_hash",
    "flat_settings",
    "flattened",
    "from_dict",
    "is_decisive",
    "is_within",
    "load_config",
    "parse_flags",
    "parse_value",
    "read_as",
    "refuse_equal_labels",
    "to_dict",
    "to_yaml",
    "unflattened",
]
