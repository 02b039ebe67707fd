"""Folders of embedding shards: their plan, their files, and the list of what is done."""
