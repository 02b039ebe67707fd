"""Small CLIP-style text transformer, sized for a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcl.encoders.tokenizers import Tokenizer, clip_bpe
from mmcl.encoders.tower import TextEncoder, check_tokenizer
from mmcl.errors import UserError
from mmcl.types import Tokens

_LENGTHS = 4
"""Parts of a batch, by length, each of which is padded to its own longest text."""


class SmallText(TextEncoder):
    """A pre-norm transformer over CLIP's byte-pair tokens: `Tokens` to [B, width].

    It has the initial weights of Radford et al. (2021; attention width^-.5, projections width^-.5 (2 layers)^-.5) and their
    causal attention, so the padding after a text has no effect. It differs from CLIP in two ways, because a small run has
    thousands of steps instead of hundreds of thousands. The features are the mean over the tokens, which distinguishes texts
    by their words from the first step. Token embeddings are stored `embedding_scale` times smaller than they are used (Vaswani
    et al., 2017, section 3.4), which under Adam multiplies the learning rate of rarely used rows by the same factor.

    Args:
        tokenizer: splits texts into tokens; None uses CLIP's vocabulary, which needs no download.
        width: width of the residual stream and of the features.
        layers: number of blocks.
        heads: attention heads; divides `width`.
        context_length: longest text in tokens.
        embedding_scale: positive factor, see above.
        dropout: dropout probability on the output of each attention and MLP.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        *,
        width: int = 128,
        layers: int = 1,
        heads: int = 4,
        context_length: int = 77,
        embedding_scale: float = 15.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise UserError(f"small_text: width {width} cannot be split over {heads} heads; take a multiple of {heads}")
        self.tokenizer = tokenizer or clip_bpe(context_length=context_length)
        self.feature_dim = width
        self.rebuild_args = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "context_length": context_length,
            "embedding_scale": embedding_scale,
            "dropout": dropout,
        }
        check_tokenizer(self.tokenizer, context_length, self, "small_text")
        self.embedding_scale = embedding_scale
        self.token_embedding = nn.Embedding(self.tokenizer.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(_Block(width, heads, layers, dropout) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.05 / embedding_scale)
        nn.init.normal_(self.position_embedding, std=0.01)

    def forward(self, tokens: Tokens) -> Tensor:
        position_LW = self.position_embedding[: tokens.ids.shape[1]]
        hidden_BLW = self.token_embedding(tokens.ids) * self.embedding_scale + position_LW
        if hidden_BLW.device.type != "cpu" or torch.compiler.is_exporting():  # a graph has no parts that depend on lengths
            return self._mean_output(hidden_BLW, tokens.mask)
        # Most texts are much shorter than the longest, and on a CPU padding costs as much as words.
        length_B = tokens.mask.sum(1)
        order_B, means = length_B.argsort(stable=True), []
        for rows in order_B.chunk(_LENGTHS):
            length = -(-int(length_B[rows[-1]]) // self.length_multiple) * self.length_multiple
            means.append(self._mean_output(hidden_BLW[rows, :length], tokens.mask[rows, :length]))
        return torch.cat(means)[order_B.argsort()]

    def _mean_output(self, hidden_BLW: Tensor, mask_BL: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_BLW = block(hidden_BLW)
        present_BL1 = mask_BL[..., None]
        mean_BW: Tensor = (self.final_norm(hidden_BLW) * present_BL1).sum(1) / present_BL1.sum(1)
        return mean_BW


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        projection_std = width**-0.5 * (2 * layers) ** -0.5
        for linear, std in (
            (self.query_key_value, width**-0.5),
            (self.attention_out, projection_std),
            (self.mlp_in, (2 * width) ** -0.5),
            (self.mlp_out, projection_std),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden_BLW: Tensor) -> Tensor:
        hidden_BLW = hidden_BLW + self.dropout(self._attend(self.attention_norm(hidden_BLW)))
        changed: Tensor = self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden_BLW)))))
        return hidden_BLW + changed

    def _attend(self, hidden_BLW: Tensor) -> Tensor:
        split = self.query_key_value(hidden_BLW).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed_BLW: Tensor = self.attention_out(attended.transpose(1, 2).flatten(2))
        return mixed_BLW
