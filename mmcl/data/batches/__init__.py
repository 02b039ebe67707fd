"""Batches from samples: sample order, loading, image views and replacement of bad samples."""
