"""Cross-entropy with class labels, for fine-tuning or for training from scratch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch.nn.functional import cross_entropy

from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class Supervised(Method):
    """Train a classifier whose logits, one per class, are the output of the image tower's head.

    The saved model can therefore classify images. A linear classifier is the head
    `{name: mlp, args: {layers: 1, embed_dim: CLASSES, final: bias}}`. With `layers: 2` and `init_head_layers: 1` the
    classifier is trained on top of the first layer of a trained projection head (Chen et al., "SimCLRv2", 2020, section 2.2).
    Images without a label are ignored. The initial loss is about the logarithm of the number of classes.

    Evaluation and export use the features; the evaluator `classification` scores the classifier.

    Args:
        towers: "image".
    """

    views: Mapping[str, Literal["image", "text"]] = {"image": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "features"
    unit_rows: ClassVar[bool] = False
    positives: ClassVar[Literal["ids", "labels"]] = "labels"

    @property
    def classes(self) -> int:
        return self.tower("image").embed_dim

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(first_loss=math.log(self.classes))

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        logits_BC, label_B = embeddings.local["image"], embeddings.ids
        labeled = (embeddings.all_ids >= 0).sum().clamp(min=1)
        right = (logits_BC.argmax(1) == label_B).sum()
        loss = cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum")
        return LossOutput(loss / labeled, {"batch_top1": right / labeled})
