"""mmcl: contrastive learning of embeddings for images and texts.

Public names are imported on first use, so `import mmcl` loads neither torch nor any other slow module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcl import evaluate as evaluate
    from mmcl import losses as losses
    from mmcl.config import Config as Config
    from mmcl.config import load_config as load_config
    from mmcl.core.cached_backward import cached_backward as cached_backward
    from mmcl.data.open import open_source as open_source
    from mmcl.data.source import Source as Source
    from mmcl.errors import UserError as UserError
    from mmcl.evaluate.classifier import TrainedClassifier as TrainedClassifier
    from mmcl.evaluate.classifier import ZeroShotClassifier as ZeroShotClassifier
    from mmcl.interop.load import load_model as load_model
    from mmcl.interop.model import Model as Model
    from mmcl.methods import METHODS as METHODS
    from mmcl.runs.run import train as train
    from mmcl.search.index import Index as Index

__version__ = "0.1.0"

_HOMES = {
    "Config": "mmcl.config",
    "Index": "mmcl.search.index",
    "METHODS": "mmcl.methods",
    "Model": "mmcl.interop.model",
    "Source": "mmcl.data.source",
    "TrainedClassifier": "mmcl.evaluate.classifier",
    "UserError": "mmcl.errors",
    "ZeroShotClassifier": "mmcl.evaluate.classifier",
    "cached_backward": "mmcl.core.cached_backward",
    "load_config": "mmcl.config",
    "load_model": "mmcl.interop.load",
    "open_source": "mmcl.data.open",
    "train": "mmcl.runs.run",
}
_MODULES = ("evaluate", "losses")

__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mmcl.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mmcl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
