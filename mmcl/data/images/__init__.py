"""From the files of others to a model's input: decoding, levels, bands, resizing and crops."""
