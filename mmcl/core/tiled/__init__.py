"""Tiled softmax losses: pairs from ids, log-sum-exp and sums of logits, without an N x M matrix."""
