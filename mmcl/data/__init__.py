"""Data pipeline: order -> read -> decode -> views -> collate, each a pure function of (seed, epoch, sample)."""

from __future__ import annotations

from mmcl.data.augment import AUGMENTATIONS
from mmcl.registry import Registry

__all__ = ["AUGMENTATIONS", "SOURCES"]

SOURCES = Registry(
    "data source",
    {
        "emoji": "mmcl.data.sources.emoji:EmojiSource",
        "emoji_texts": "mmcl.data.sources.emoji_texts:EmojiTextSource",
        "folder": "mmcl.data.sources.folders.source:FolderSource",
        "table": "mmcl.data.sources.tables.source:TableSource",
        "webdataset": "mmcl.data.sources.shards.source:WebDatasetSource",
        "huggingface": "mmcl.data.sources.huggingface:HuggingFaceSource",
        "torchvision": "mmcl.data.sources.torchvision:TorchvisionSource",
        "embeddings": "mmcl.data.sources.embeddings.source:EmbeddingSource",
        "digits": "mmcl.data.sources.digits:DigitsSource",
    },
)
