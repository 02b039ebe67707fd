"""Stored embeddings in place of images and texts: folders of `mmcl embed`, and parquet files of any origin."""
