"""Search a collection of images, or of their captions, by text, by image, or by both."""

from __future__ import annotations

from mmcl.search.hits import Hit, Hits
from mmcl.search.index import Index

__all__ = ["Hit", "Hits", "Index"]
