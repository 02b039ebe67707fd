"""Training methods, one per file: views, towers, loss, and state updated after each step."""

from __future__ import annotations

from mmcl.registry import Registry

METHODS = Registry(
    "method",
    {
        "barlow_twins": "mmcl.methods.barlow_twins:BarlowTwins",
        "byol": "mmcl.methods.byol:BYOL",
        "clip": "mmcl.methods.clip:CLIP",
        "contrastive_pair": "mmcl.methods.metric:ContrastivePair",
        "distillation": "mmcl.methods.distillation:Distillation",
        "lejepa": "mmcl.methods.lejepa:LeJEPA",
        "margin": "mmcl.methods.metric:Margin",
        "moco": "mmcl.methods.moco:MoCo",
        "moco_v3": "mmcl.methods.moco_v3:MoCoV3",
        "momentum_clip": "mmcl.methods.momentum_clip:MomentumCLIP",
        "siglip": "mmcl.methods.siglip:SigLIP",
        "simclr": "mmcl.methods.simclr:SimCLR",
        "simcse": "mmcl.methods.simcse:SimCSE",
        "simsiam": "mmcl.methods.simsiam:SimSiam",
        "slip": "mmcl.methods.slip:SLIP",
        "sogclr": "mmcl.methods.sogclr:SogCLR",
        "supcon": "mmcl.methods.supcon:SupCon",
        "supervised": "mmcl.methods.supervised:Supervised",
        "swav": "mmcl.methods.swav:SwAV",
        "triplet": "mmcl.methods.metric:Triplet",
        "vicreg": "mmcl.methods.vicreg:VICReg",
    },
)
