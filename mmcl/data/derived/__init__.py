"""Sources derived from other sources: subsets, mixtures and replaced captions."""
