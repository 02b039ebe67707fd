"""Tar shards of images with captions, read by offset through an index: nothing is extracted, nothing is streamed."""
