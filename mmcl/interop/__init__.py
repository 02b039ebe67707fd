"""Loading and saving models: mmcl's own format, open_clip, transformers, timm, torchvision."""
