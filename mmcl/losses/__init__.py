"""Losses for your own training loop, as functions of tensors and as modules.

Arguments have the same names everywhere: `image` and `text` for pairs, `a` and `b` for views, otherwise `query` and `key`. Rows
with equal `ids` belong together. Rows are scaled to unit length if the paper does so. All losses compute in float32 whatever
the input type (float64 for float64 rows), have exact derivatives of any order, and form no N x M matrix for large inputs. Names
are imported on first use. For training on several processes, see `gathered`; for embeddings of several widths, `matryoshka`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcl.lazy import lazy_names
from mmcl.losses.table import LOSSES, LossEntry

if TYPE_CHECKING:
    from mmcl.losses.metric_learning import contrastive_pair_loss as contrastive_pair_loss
    from mmcl.losses.metric_learning import margin_loss as margin_loss
    from mmcl.losses.metric_learning import triplet_loss as triplet_loss
    from mmcl.losses.modules import BarlowTwinsLoss as BarlowTwinsLoss
    from mmcl.losses.modules import BYOLLoss as BYOLLoss
    from mmcl.losses.modules import ClipLoss as ClipLoss
    from mmcl.losses.modules import ContrastivePairLoss as ContrastivePairLoss
    from mmcl.losses.modules import DCLLoss as DCLLoss
    from mmcl.losses.modules import InfoNCELoss as InfoNCELoss
    from mmcl.losses.modules import LeJEPALoss as LeJEPALoss
    from mmcl.losses.modules import MarginLoss as MarginLoss
    from mmcl.losses.modules import MoCoLoss as MoCoLoss
    from mmcl.losses.modules import NTXentLoss as NTXentLoss
    from mmcl.losses.modules import SigLipLoss as SigLipLoss
    from mmcl.losses.modules import SimCSELoss as SimCSELoss
    from mmcl.losses.modules import SupConLoss as SupConLoss
    from mmcl.losses.modules import SwAVLoss as SwAVLoss
    from mmcl.losses.modules import TripletLoss as TripletLoss
    from mmcl.losses.modules import VICRegLoss as VICRegLoss
    from mmcl.losses.prefixes import matryoshka as matryoshka
    from mmcl.losses.processes import gathered as gathered
    from mmcl.losses.sigmoid import siglip_loss as siglip_loss
    from mmcl.losses.softmax import clip_loss as clip_loss
    from mmcl.losses.softmax import info_nce as info_nce
    from mmcl.losses.softmax import moco_loss as moco_loss
    from mmcl.losses.softmax import simcse_loss as simcse_loss
    from mmcl.losses.two_views import dcl_loss as dcl_loss
    from mmcl.losses.two_views import nt_xent as nt_xent
    from mmcl.losses.two_views import supcon_loss as supcon_loss
    from mmcl.losses.without_negatives import barlow_twins_loss as barlow_twins_loss
    from mmcl.losses.without_negatives import byol_loss as byol_loss
    from mmcl.losses.without_negatives import lejepa_loss as lejepa_loss
    from mmcl.losses.without_negatives import swav_loss as swav_loss
    from mmcl.losses.without_negatives import vicreg_loss as vicreg_loss

_HOMES = {
    "BYOLLoss": "modules",
    "BarlowTwinsLoss": "modules",
    "ClipLoss": "modules",
    "ContrastivePairLoss": "modules",
    "DCLLoss": "modules",
    "InfoNCELoss": "modules",
    "LeJEPALoss": "modules",
    "MarginLoss": "modules",
    "MoCoLoss": "modules",
    "NTXentLoss": "modules",
    "SigLipLoss": "modules",
    "SimCSELoss": "modules",
    "SupConLoss": "modules",
    "SwAVLoss": "modules",
    "TripletLoss": "modules",
    "VICRegLoss": "modules",
    "barlow_twins_loss": "without_negatives",
    "byol_loss": "without_negatives",
    "clip_loss": "softmax",
    "contrastive_pair_loss": "metric_learning",
    "dcl_loss": "two_views",
    "gathered": "processes",
    "info_nce": "softmax",
    "lejepa_loss": "without_negatives",
    "margin_loss": "metric_learning",
    "matryoshka": "prefixes",
    "moco_loss": "softmax",
    "nt_xent": "two_views",
    "siglip_loss": "sigmoid",
    "simcse_loss": "softmax",
    "supcon_loss": "two_views",
    "swav_loss": "without_negatives",
    "triplet_loss": "metric_learning",
    "vicreg_loss": "without_negatives",
}

__all__ = ["LOSSES", "LossEntry", *sorted(_HOMES)]

if not TYPE_CHECKING:  # A type checker would accept any name.
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
