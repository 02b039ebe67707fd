"""Softmax contrasts in tiles: pairs by ids, log-sum-exp and sums of logits, without an N x M matrix."""
