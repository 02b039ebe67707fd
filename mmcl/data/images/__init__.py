"""Image input: decoding of untrusted files, intensity levels, bands, resizing and crops."""
