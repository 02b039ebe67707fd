"""Models from and to disk and hub: our own format, open_clip, transformers, timm, torchvision."""
