"""From files to batches: order -> read -> decode -> views -> collate, each a pure function of (seed, epoch, sample)."""

from __future__ import annotations

from mmcl.data.augment import AUGMENTATIONS
from mmcl.registry import Registry

__all__ = ["AUGMENTATIONS", "SOURCES"]

SOURCES = Registry(
    "data source",
    {
        "emoji": "mmcl.data.emoji:EmojiSource",
        "emoji_texts": "mmcl.data.emoji_texts:EmojiTextSource",
        "folder": "mmcl.data.folder:FolderSource",
        "table": "mmcl.data.table:TableSource",
        "webdataset": "mmcl.data.shards.source:WebDatasetSource",
        "huggingface": "mmcl.data.huggingface:HuggingFaceSource",
        "torchvision": "mmcl.data.torchvision:TorchvisionSource",
        "digits": "mmcl.data.digits:DigitsSource",
    },
)
