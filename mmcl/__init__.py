"""mmcl: contrastive learning of embeddings for images and texts.

Public names are imported on first use, so `import mmcl` loads neither torch nor any other slow module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcl.lazy import lazy_names

if TYPE_CHECKING:
    from mmcl import evaluate as evaluate
    from mmcl import losses as losses
    from mmcl.config import Config as Config
    from mmcl.config import load_config as load_config
    from mmcl.core.cached_backward import cached_backward as cached_backward
    from mmcl.data.open import open_source as open_source
    from mmcl.data.sample import Sample as Sample
    from mmcl.data.source import Source as Source
    from mmcl.encoders.adapters import adapt as adapt
    from mmcl.encoders.adapters import merge_adapters as merge_adapters
    from mmcl.engine.parameter_groups import param_groups as param_groups
    from mmcl.errors import UserError as UserError
    from mmcl.evaluate.classifier import HeadClassifier as HeadClassifier
    from mmcl.evaluate.classifier import TrainedClassifier as TrainedClassifier
    from mmcl.evaluate.classifier import ZeroShotClassifier as ZeroShotClassifier
    from mmcl.interop.export.exporting import export as export
    from mmcl.interop.load import load_model as load_model
    from mmcl.interop.merge import merge as merge
    from mmcl.interop.model import Model as Model
    from mmcl.interop.mteb import MTEBModel as MTEBModel
    from mmcl.interop.truncated import TruncatedModel as TruncatedModel
    from mmcl.methods import METHODS as METHODS
    from mmcl.runs.run import train as train
    from mmcl.search.index import Index as Index

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "HeadClassifier": "evaluate.classifier",
    "Index": "search.index",
    "METHODS": "methods",
    "MTEBModel": "interop.mteb",
    "Model": "interop.model",
    "Sample": "data.sample",
    "Source": "data.source",
    "TrainedClassifier": "evaluate.classifier",
    "TruncatedModel": "interop.truncated",
    "UserError": "errors",
    "ZeroShotClassifier": "evaluate.classifier",
    "adapt": "encoders.adapters",
    "cached_backward": "core.cached_backward",
    "evaluate": "evaluate",
    "export": "interop.export.exporting",
    "load_config": "config",
    "load_model": "interop.load",
    "losses": "losses",
    "merge": "interop.merge",
    "merge_adapters": "encoders.adapters",
    "open_source": "data.open",
    "param_groups": "engine.parameter_groups",
    "train": "runs.run",
}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:  # A type checker would accept any name.
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
