"""Tar shards of images with captions, with random access through an index and without extraction."""
