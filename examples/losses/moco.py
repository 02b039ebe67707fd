"""MoCo in plain PyTorch: a momentum teacher's keys of past batches are the negatives. No labels.

python examples/losses/moco.py --steps 200
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmcl.losses import MoCoLoss


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images, [N, 1, 8, 8] from 0 to 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def augment(image: Tensor) -> Tensor:
    """Every image turned, resized and shifted by an affine map of its own, with another contrast and noise."""
    turn, size, shift_x, shift_y = torch.tensor([0.6, 0.4, 0.5, 0.5])[:, None] * (torch.rand(4, len(image)) - 0.5)
    cos, sin = (1 + size) * turn.cos(), (1 + size) * turn.sin()
    affine = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(-1, 2, 3)
    moved = F.grid_sample(image, F.affine_grid(affine, list(image.shape), align_corners=False), align_corners=False)
    return moved * (0.7 + 0.6 * torch.rand(len(image), 1, 1, 1)) + 0.1 * torch.randn_like(moved)


def make_encoder() -> nn.Sequential:
    """Images to 256 features."""
    layers: list[nn.Module] = []
    for channels, wider, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(channels, wider, 3, stride, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def knn_accuracy(feature: Tensor, label: Tensor, bank: int) -> float:
    """The rows after the bank, by the five nearest rows of the bank."""
    unit = F.normalize(feature.flatten(1), dim=1)
    nearest = (unit[bank:] @ unit[:bank].T).topk(5).indices
    return (label[nearest].mode(1).values == label[bank:]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    (image, label), bank = digits(), 1200  # the first 1,200 are learned from, the others only asked for
    encoder = make_encoder()
    with torch.no_grad():
        untrained = encoder.eval()(image)
    head = nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))
    student = nn.Sequential(encoder.train(), head)
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    criterion = MoCoLoss(size=1024, dim=64, temperature=0.2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)

    for step in range(1, steps + 1):
        rows = torch.randint(bank, (128,))
        with torch.no_grad():
            key = teacher(augment(image[rows]))
        loss = criterion(student(augment(image[rows])), key, rows)  # a key of the same image in the queue is not a negative
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update_parameters(student)
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    with torch.no_grad():
        found = {"learned": encoder.eval()(image), "untrained": untrained, "raw pixels": image}
    print(", ".join(f"{name} {knn_accuracy(x, label, bank):.3f}" for name, x in found.items()), "(k-NN accuracy)")


if __name__ == "__main__":
    main()
