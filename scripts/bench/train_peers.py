"""The trainers that scripts/bench/train.py compares mmcl's with, and a plain loop. Toolkits are imported when they run."""

from __future__ import annotations

import csv
import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mmcl.config import Config
from mmcl.engine.transfer import views_on
from mmcl.types import Batch

PLAIN = "plain loop"
LOGGED = 10
"""Steps from one look at the loss of the plain loop to the next."""


def run_plain_loop(model: str, config: Config, folder: Path, scratch: Path) -> None:
    from mmcl.data.batches.loader import StepBatches
    from mmcl.engine.optim import build_optimizer
    from mmcl.engine.process_settings import freed_memory_kept
    from mmcl.runs.plan import make_plan

    plan = make_plan(config, 1)
    method: Any = plan.method
    text: Any = method.towers["text"].encoder if "text" in method.towers else None
    texts = [view for view, kind in method.views.items() if kind == "text"]
    made = StepBatches(plan.source, plan.order, images=plan.views, texts=texts, tokenizer=text.tokenizer if text else None)
    batches = [made[step] for step in range(plan.facts.total_steps)]
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    # Muon is the only optimizer that torch does not have in this form.
    optimizer = build_optimizer(method, config.optim) if config.optim.muon_lr else torch.optim.AdamW(parameters, fused=True)
    method.train()
    with freed_memory_kept():
        for step, batch in enumerate(batches):
            loss = plain_step(method, batch, optimizer)
            if step % LOGGED == 0:
                print(float(loss))


def plain_step(method: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
    """A step of the plain loop; its loss."""
    rows = method.encode(views_on("cpu", batch.views))
    loss_of = clip_loss if "text" in method.towers else nt_xent
    loss = loss_of({name: normalize(row, dim=1) for name, row in rows.items()}, method, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def clip_loss(rows: Mapping[str, Tensor], method: Any, batch: Batch) -> Tensor:
    """CLIP's loss, with SupCon's between the images where the method has it."""
    logits, target = method.logit_scale * rows["image"] @ rows["text"].T, torch.arange(len(batch.ids))
    loss: Tensor = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    if not method.image_weight:
        return loss
    same = batch.ids[:, None] == batch.ids
    same.fill_diagonal_(False)
    itself = torch.eye(len(same), dtype=torch.bool)
    log_prob = (rows["image"] @ rows["image"].T / method.image_temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    has_positive = same.any(1)
    between = -log_prob.masked_fill(~same, 0).sum(1)[has_positive] / same.sum(1)[has_positive]
    both: Tensor = loss + method.image_weight * between.sum() / len(same)
    return both


def nt_xent(rows: Mapping[str, Tensor], method: Any, batch: Batch) -> Tensor:
    first, second = rows.values()
    both, count = torch.cat([first, second]), len(first)
    logits = (both @ both.T / method.temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(logits, (torch.arange(2 * count) + count) % (2 * count))


def run_open_clip(model: str, config: Config, folder: Path, scratch: Path) -> None:
    open_clip: Any = importlib.import_module("open_clip")
    main: Any = importlib.import_module("open_clip_train.main")
    open_clip.add_model_config(folder / f"{model}.json")
    size, optim = config.train.batch_size, config.optim
    main.main(
        [
            *("--model", model, "--dataset-type", "csv", "--train-data", str(folder / "pairs.csv"), "--csv-separator", ","),
            *("--csv-img-key", "image", "--csv-caption-key", "caption", "--batch-size", str(size), "--workers", "1"),
            *("--epochs", "1", "--precision", "fp32", "--lr", str(optim.lr), "--warmup", "10", "--device", "cpu"),
            *("--log-every-n-steps", str(LOGGED), "--logs", str(scratch), "--name", "open_clip"),
        ]
    )


def run_sentence_transformers(model: str, config: Config, folder: Path, scratch: Path) -> None:
    toolkit: Any = importlib.import_module("sentence_transformers")
    datasets: Any = importlib.import_module("datasets")
    ranking: Any = importlib.import_module("sentence_transformers.sentence_transformer.losses").MultipleNegativesRankingLoss
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    with (folder / "pairs.csv").open(newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))
    columns = {key: [pair[key] for pair in pairs] for key in ("image", "caption")}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    tower = toolkit.SentenceTransformer(str(folder / "hf"), device="cpu")
    options = toolkit.SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "st"),
        per_device_train_batch_size=config.train.batch_size,
        max_steps=config.train.steps,
        learning_rate=config.optim.lr,
        dataloader_num_workers=1,
        logging_steps=LOGGED,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    toolkit.SentenceTransformerTrainer(model=tower, args=options, train_dataset=data, loss=ranking(tower, scale=20)).train()


def run_lightly(model: str, config: Config, folder: Path, scratch: Path) -> None:
    """The recipe of lightly's documentation: its transform, head, loss and optimizer, with the encoder of mmcl."""
    transforms: Any = importlib.import_module("lightly.transforms")
    heads: Any = importlib.import_module("lightly.models.modules")
    losses: Any = importlib.import_module("lightly.loss")
    vision: Any = importlib.import_module("torchvision.datasets")
    from mmcl.runs.plan import make_plan

    encoder: Any = make_plan(config, 1).method.towers["image"].encoder
    net = nn.Sequential(encoder, heads.SimCLRProjectionHead(encoder.feature_dim, 256, 64))
    twice = transforms.SimCLRTransform(input_size=28, normalize={"mean": [0.5], "std": [0.5]})
    data = vision.ImageFolder(str(folder / "images"), transform=lambda image: twice(image.convert("L")))
    loader = torch.utils.data.DataLoader(data, batch_size=config.train.batch_size, shuffle=True, drop_last=True, num_workers=1)
    criterion = losses.NTXentLoss(temperature=0.2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.06)
    while True:
        for step, ((first, second), *_) in enumerate(loader):
            loss = criterion(net(first), net(second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % LOGGED == 0:
                print(float(loss.detach()))


PEERS: Mapping[str, Callable[[str, Config, Path, Path], None]] = {
    PLAIN: run_plain_loop,
    "open_clip": run_open_clip,
    "sentence-transformers": run_sentence_transformers,
    "lightly": run_lightly,
}
