"""Losses, key queues and moving averages of tensors; depends only on torch."""
