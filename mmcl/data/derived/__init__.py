"""Sources made of other sources: parts, mixtures, and other captions."""
