"""Embedding jobs: folders of shards, filled by any number of processes on any number of machines."""
