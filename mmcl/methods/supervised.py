"""Cross-entropy with class labels: fine-tuning, and the same net from scratch beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch.nn.functional import cross_entropy

from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossFacts, LossOutput


class Supervised(Method):
    """A classifier: the image tower's head gives the logits, one for each class, so that the saved model classifies too.

    A linear classifier is the head `{name: mlp, args: {layers: 1, embed_dim: CLASSES, final: bias}}`. With `layers: 2` and
    `init_head_layers: 1` it stands on the first layer of a trained projection head (Chen et al., "SimCLRv2", 2020, section
    2.2). Images without a label count for nothing. The first loss is about the log of the number of classes.

    What is evaluated and exported are the features; the evaluator `classification` scores the classifier.

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
        labelled = (embeddings.all_ids >= 0).sum().clamp(min=1)
        right = (logits_BC.argmax(1) == label_B).sum()
        loss = cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum")
        return LossOutput(loss / labelled, {"batch_top1": right / labelled})
