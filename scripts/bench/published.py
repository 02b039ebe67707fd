"""The claims of the ledger: what is published, and which trainings try it. Read by claims.py, which runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Flags = tuple[str, ...]
PLAIN: Flags = ("--method", "{name: clip, args: {temperature: 0.0667, learn_temperature: false}}")


ROWS = "ROWS"
"""In flags: the folder with the embeddings of the training data by the default run of the same seed."""


@dataclass(frozen=True)
class Run:
    """A training, and the width at which its embeddings are tested, None for all of it."""

    config: str = "clip_emoji"
    flags: Flags = ()
    dim: int | None = None

    @property
    def reads_rows(self) -> bool:
        return any(ROWS in flag for flag in self.flags)


@dataclass(frozen=True)
class Claim:
    """A published gain and how it is tried.

    Attributes:
        published: what is claimed, and where.
        own, beside: the run with the method, and that which it is compared with.
        asked: least ratio of their R@1; None if nothing is claimed.
        controls: further runs by name, which have no verdict.
    """

    published: str
    own: Run
    beside: Run
    asked: float | None
    controls: Mapping[str, Run] = field(default_factory=dict)


HALF: Flags = ("--train.epochs", "42.5")
WITHOUT_HALF = {"half of the samples without it": Run(flags=HALF)}
SMALL: Flags = ("--train.batch_size", "64", "--optim.lr", "5.0e-4", "--optim.muon_lr", "0.014")
TEACHER: Flags = ("--train.distillation.weight", "0.8", "--train.distillation.temperature", "0.3")
NEIGHBORS: Flags = (
    *("--train.distillation.targets", "neighbors"),
    *("--train.distillation.weight", "0.5", "--train.distillation.temperature", "0.2"),
)
ALL_PATCHES: Flags = ("--train.fewer_tokens.patches", "1")
SMALLER: Flags = (*ALL_PATCHES, "--train.fewer_tokens.image_size", "28")
"""49 of 100 patches."""
NESTED = Run(flags=("--train.matryoshka.dims", "[64]"), dim=64)
CLAIMS = {
    "sogclr": Claim(
        "small batches as good as large ones by normalisers over the data set (Yuan et al., 2202.12387)",
        Run("sogclr_emoji"),
        Run(flags=PLAIN),
        0.97,
        {"batches of 64 without it": Run(flags=(*PLAIN, *SMALL))},
    ),
    "matryoshka": Claim(
        "a quarter of the width keeps 99 % (Kusupati et al., 2205.13147)",
        NESTED,
        Run(),
        0.98,
        {"a quarter without it": Run(dim=64), "its own full width": Run(flags=NESTED.flags)},
    ),
    "fewer_tokens": Claim(
        "half of the patches, and all in the last tenth of the steps, as good as all throughout (Li et al., FLIP, 2212.00794)",
        Run("clip_emoji_vit"),
        Run("clip_emoji_vit", ALL_PATCHES),
        0.97,
        {
            "all patches in 0.56 of the steps": Run("clip_emoji_vit", (*ALL_PATCHES, "--train.epochs", "47.6")),
            "without the finish": Run("clip_emoji_vit", ("--train.fewer_tokens.finish", "0")),
        },
    ),
    "smaller_images": Claim(
        "images of half the patches, and full ones in the last tenth of the steps, as good as full ones throughout (Li et al., "
        "CLIPA, 2305.07017)",
        Run("clip_emoji_vit", SMALLER),
        Run("clip_emoji_vit", ALL_PATCHES),
        0.97,
        {"without the finish": Run("clip_emoji_vit", (*SMALLER, "--train.fewer_tokens.finish", "0"))},
    ),
    "teacher": Claim(
        "half of the samples with a stored teacher as good as all (Vasu et al., MobileCLIP, 2311.17049: 10 to 1,000 times the "
        "efficiency); the teacher is the run beside it",
        Run(flags=(*HALF, "--data.embeddings", ROWS, *TEACHER)),
        Run(),
        0.97,
        WITHOUT_HALF,
    ),
    "taught": Claim(
        "as many samples with a stored teacher as good as twice as many without it; the teacher has seen as many",
        Run(flags=("--data.embeddings", ROWS, *TEACHER)),
        Run(flags=("--train.epochs", "170")),
        1.0,
        {"as many without it": Run()},
    ),
    "neighbors": Claim(
        "half of the samples with neighbors as positives as good as all (SoftCLIP, 2303.17561; CLIP-PING, 2412.03871: +5.5 on "
        "ImageNet); neighbors by the run beside it",
        Run(flags=(*HALF, "--data.embeddings", ROWS, *NEIGHBORS)),
        Run(),
        0.97,
        WITHOUT_HALF,
    ),
    "hard_batches": Claim(
        "batches of 64 samples that are like each other as good as 512 random ones (Thirukovalluru et al., B3, 2505.11293)",
        Run(flags=(*SMALL, "--data.hard_batches", f"{{embeddings: {ROWS}, cluster: 16, skip: 10}}")),
        Run(),
        0.97,
        {"random batches of 64": Run(flags=SMALL)},
    ),
    "half": Claim("none: what half of the samples cost, for the claims above", Run(flags=HALF), Run(), None),
}
UNTESTED = {
    "LeJEPA, 79 % linear on ImageNet (2511.08544)": "needs ViT-H/14 and ImageNet; the method is here on MNIST, docs/results.md",
}
