"""One file per method: which views, which towers, which loss, what is committed after the step."""

from __future__ import annotations

from mmcl.registry import Registry

METHODS = Registry(
    "method",
    {
        "barlow_twins": "mmcl.methods.barlow_twins:BarlowTwins",
        "byol": "mmcl.methods.byol:BYOL",
        "clip": "mmcl.methods.clip:CLIP",
        "moco": "mmcl.methods.moco:MoCo",
        "moco_v3": "mmcl.methods.moco_v3:MoCoV3",
        "siglip": "mmcl.methods.siglip:SigLIP",
        "simcse": "mmcl.methods.simcse:SimCSE",
        "simclr": "mmcl.methods.simclr:SimCLR",
        "simsiam": "mmcl.methods.simsiam:SimSiam",
        "supcon": "mmcl.methods.supcon:SupCon",
        "vicreg": "mmcl.methods.vicreg:VICReg",
    },
)
