"""One file per method: which views, which towers, which loss, what is committed after the step."""

from __future__ import annotations

from mmcl.registry import Registry

METHODS = Registry(
    "method",
    {
        "clip": "mmcl.methods.clip:CLIP",
        "simcse": "mmcl.methods.simcse:SimCSE",
        "siglip": "mmcl.methods.siglip:SigLIP",
        "simclr": "mmcl.methods.simclr:SimCLR",
    },
)
