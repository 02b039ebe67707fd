"""SigLIP in plain PyTorch: each pair of an image and a text is classified independently as matching or not. Bundled emoji.

python examples/losses/siglip.py --steps 200
"""

import argparse
import io
import zlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import mmcl
from mmcl.losses import SigLipLoss

WORDS, WIDTH = 4096, 64


def read(fold: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, 3, 16, 16] from 0 to 1, the words of their names [N, 8] as numbers, and ids: rows of equal ids are pairs."""
    source = mmcl.open_source("emoji", args={"fold": fold})
    images, texts = [], []
    for sample in (source[row] for row in range(len(source))):
        assert isinstance(sample.image, bytes)  # an encoded file
        image = Image.open(io.BytesIO(sample.image)).convert("RGB").resize((16, 16))
        images.append(np.asarray(image, dtype=np.float32) / 255)
        words = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in sample.captions[0].split()]
        texts.append((words + 8 * [0])[:8])
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(texts), torch.tensor(source.ids)


def make_towers() -> tuple[nn.Module, nn.Module]:
    layers: list[nn.Module] = []
    for channels, wider in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, wider, 3, 2, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
    center = nn.BatchNorm1d(WIDTH, affine=False)  # without which all pairs begin about equally alike, and learning is slow
    image_tower = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, WIDTH), center)
    return image_tower, nn.Sequential(nn.EmbeddingBag(WORDS, WIDTH, padding_idx=0), nn.BatchNorm1d(WIDTH, affine=False))


@torch.no_grad()
def recall(towers: tuple[nn.Module, nn.Module], image: Tensor, text: Tensor, ids: Tensor, k: int = 10) -> float:
    """How many texts find their image among the first k."""
    image_row, text_row = (F.normalize(tower.eval()(x), dim=1) for tower, x in zip(towers, (image, text), strict=True))
    found = ids[(text_row @ image_row.T).topk(k).indices]
    return (found == ids[:, None]).any(1).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    (image, text, ids), new = read("train"), read("test")  # the same concepts, drawn by a vendor that was never seen
    towers = make_towers()
    untrained = recall(towers, *new)
    criterion = SigLipLoss(bias=-5.5)  # about -ln(256 - 1): each pair of a batch is true with that probability
    learned = [*towers[0].train().parameters(), *towers[1].train().parameters(), *criterion.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=2e-3)

    for step in range(1, steps + 1):
        rows = torch.randint(len(ids), (256,))
        loss = criterion(towers[0](image[rows]), towers[1](text[rows]), ids[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, temperature {1 / criterion.log_scale.exp().item():.3f}")
    chance = 10 / len(new[2])
    print(
        f"text -> image R@10 on a new style: learned {recall(towers, *new):.3f}, untrained {untrained:.3f}, chance {chance:.3f}"
    )


if __name__ == "__main__":
    main()
