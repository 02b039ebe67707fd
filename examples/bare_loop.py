"""CLIP in a plain PyTorch loop that uses only a loss of mmcl. The whole method fits on this screen.

python examples/bare_loop.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from mmcl.losses import ClipLoss

CONCEPTS, PIXELS, WORDS, WIDTH = 64, 192, 32, 48


def make_pairs(concept: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic pairs: image and text are noisy, different views of one concept."""
    world = torch.Generator().manual_seed(0)
    look, name = (torch.randn(CONCEPTS, width, generator=world) for width in (PIXELS, WORDS))
    noise = [torch.randn(len(concept), width, generator=rng) for width in (PIXELS, WORDS)]
    return look[concept] + noise[0], name[concept] + 0.3 * noise[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    image_tower = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, WIDTH))
    text_tower = nn.Sequential(nn.Linear(WORDS, 128), nn.ReLU(), nn.Linear(128, WIDTH))
    criterion = ClipLoss()  # with a learned temperature
    optimizer = torch.optim.AdamW(
        [*image_tower.parameters(), *text_tower.parameters(), *criterion.parameters()], lr=2e-3, weight_decay=0.0
    )

    for step in range(1, steps + 1):
        concept = torch.randint(CONCEPTS, (128,), generator=rng)
        image, text = (tower(x) for tower, x in zip((image_tower, text_tower), make_pairs(concept, rng), strict=True))
        # Rows with equal ids are positives of each other: with 64 concepts in a batch of 128 there are many.
        loss = criterion(image, text, concept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, temperature {1 / criterion.log_scale.exp().item():.3f}")

    with torch.no_grad():
        every = torch.arange(CONCEPTS)
        image, text = (F.normalize(t(x), dim=1) for t, x in zip((image_tower, text_tower), make_pairs(every, rng), strict=True))
        right = (text @ image.T).argmax(1) == every
    print(f"text -> image R@1 on new pairs: {right.float().mean():.3f} (chance {1 / CONCEPTS:.3f})")


if __name__ == "__main__":
    main()
