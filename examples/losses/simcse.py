"""SimCSE in plain PyTorch, with positives: the name of an emoji identifies its keywords within the batch.

python examples/losses/simcse.py --steps 200
"""

import argparse
import zlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mmcl
from mmcl.losses import SimCSELoss

GRAMS, LENGTH = 8192, 128


def numbers(texts: list[str]) -> Tensor:
    """The groups of four letters of every text as numbers, [N, LENGTH], filled up with 0."""
    rows = []
    for text in texts:
        padded = f"  {text.lower()}  "
        grams = [1 + zlib.crc32(padded[i : i + 4].encode()) % (GRAMS - 1) for i in range(len(padded) - 3)]
        rows.append((grams + LENGTH * [0])[:LENGTH])
    return torch.tensor(rows)


def read(fold: str) -> tuple[Tensor, Tensor]:
    """Names such as "see-no-evil monkey", and the keywords that share no word with them, such as "forbidden, gesture"."""
    source = mmcl.open_source("emoji_texts", args={"fold": fold})
    samples = [source[row] for row in range(len(source))]
    return numbers([sample.captions[0] for sample in samples]), numbers([sample.positives[0] for sample in samples])


@torch.no_grad()
def recall(tower: nn.Module, name: Tensor, keywords: Tensor, k: int = 10) -> float:
    """How many names find their keywords among the first k."""
    query, key = (F.normalize(tower.eval()(x), dim=1) for x in (name, keywords))
    return ((query @ key.T).topk(k).indices == torch.arange(len(query))[:, None]).any(1).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    (name, keywords), new = read("train"), read("test")  # other concepts
    tower = nn.Sequential(nn.EmbeddingBag(GRAMS, 256, padding_idx=0), nn.Dropout(0.2), nn.Linear(256, 128))
    untrained = recall(tower, *new)
    criterion = SimCSELoss(temperature=0.05)
    optimizer = torch.optim.AdamW(tower.train().parameters(), lr=2e-3)

    for step in range(1, steps + 1):
        rows = torch.randint(len(name), (256,))
        # Without keywords, the positive is the name under another dropout mask: tower(name[rows]) in both places.
        loss = criterion(tower(name[rows]), tower(keywords[rows]), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    learned, chance = recall(tower, *new), 10 / len(new[0])
    print(f"name -> keywords R@10 on new concepts: learned {learned:.3f}, untrained {untrained:.3f}, chance {chance:.3f}")


if __name__ == "__main__":
    main()
