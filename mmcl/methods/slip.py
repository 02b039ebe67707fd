"""SLIP (Mu, Kirillov, Wagner, Xie, "SLIP: Self-supervision meets Language-Image Pre-training", 2021)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmcl.core.precision import unit_rows
from mmcl.encoders.heads import MLPHead
from mmcl.methods.clip import CLIP
from mmcl.methods.two_views import all_rows, local_rows, nt_xent
from mmcl.types import Batch, Embeddings, Input, LossFacts, LossOutput, Views


class SLIP(CLIP):
    """Add a SimCLR loss on the same image encoder, with a separate head, to CLIP's loss (algorithm 1 of the paper).

    CLIP uses the view "image"; SimCLR uses the views "a" and "b", which need stronger augmentation: set `data.views`.

    Args:
        towers, temperature, max_scale: as in `CLIP`.
        ssl_scale: weight of SimCLR's loss; 0 is plain CLIP.
        ssl_temperature: fixed temperature of SimCLR's loss.
        ssl_hidden_dim, ssl_embed_dim: widths of SimCLR's head, which has three linear layers as in the paper.
    """

    views: Mapping[str, Literal["image", "text"]] = {"image": "image", "text": "text", "a": "image", "b": "image"}
    embedding: ClassVar[Literal["projection", "features"]] = "projection"
    test_args: ClassVar[Mapping[str, Any]] = {"ssl_hidden_dim": 12, "ssl_embed_dim": 6}

    def __init__(
        self,
        towers: nn.ModuleDict,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        ssl_scale: float = 1.0,
        ssl_temperature: float = 0.1,
        ssl_hidden_dim: int = 4096,
        ssl_embed_dim: int = 256,
    ):
        super().__init__(towers, temperature=temperature, max_scale=max_scale)
        features = self.tower("image").encoder.feature_dim
        self.ssl_head = MLPHead(features, hidden_dim=ssl_hidden_dim, embed_dim=ssl_embed_dim, layers=3, final="bias")
        self.ssl_scale, self.ssl_temperature = ssl_scale, ssl_temperature

    @property
    def loss_parameters(self) -> list[nn.Parameter]:
        return [self.log_scale]

    def describe(self, global_batch: int) -> LossFacts:
        return LossFacts(negatives=global_batch - 1)

    @property
    def embedded_views(self) -> Collection[str]:
        return "image", "text"  # the rows of "a" and "b" are those of another head

    def encode(self, views: Views) -> dict[str, Tensor]:
        rows = self.embed(self.towers, {name: views[name] for name in ("image", "text")})
        return rows | {name: self._ssl_rows(views[name]) for name in ("a", "b")}

    def _ssl_rows(self, view: Input) -> Tensor:
        return unit_rows(self.ssl_head(self.tower("image").features(view).rows))

    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        clip = super().loss(embeddings, batch).loss
        keys = all_rows(embeddings)
        queries = keys if embeddings.share == 1 else local_rows(embeddings)
        ssl = nt_xent(queries, keys, scale=1 / self.ssl_temperature) / len(keys.id_N)
        return LossOutput(clip + self.ssl_scale * ssl, {"clip_loss": clip.detach(), "ssl_loss": ssl.detach()})
