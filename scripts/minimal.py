"""The engine without the engine: one model, one data set, plain PyTorch, and to the last bit the numbers of train.py.

Read it to see what a training is here, and by that what the engine adds: resuming to the bit, FFCV and augmentation,
mixed precision, other schedules, mixup, moving averages, several processes, status and tables.
tests/engine/test_minimal.py compares every weight.
"""

import math
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main
from engine.data.sets import DATASETS, read_raw
from engine.rng import permutation, seed_everything


def load(dataset: str, split: str, raw_dir: Path) -> tuple[Any, Any]:
    """Normalised images, (N, C, H, W) float32 in NHWC memory as convolutions want it, and labels, (N,) int64."""
    import numpy as np
    import torch

    facts, samples = DATASETS[dataset], read_raw(dataset, split, raw_dir)
    images, labels = zip(*(samples[i] for i in range(len(samples))), strict=True)
    pixels_NHWC = torch.from_numpy(np.stack([np.asarray(image) for image in images])[..., : facts.in_chans])
    # As the engine does it, on the 0..255 scale and by a product: x / std would differ in the last bit.
    normal_NHWC = (pixels_NHWC.float() - torch.tensor(facts.mean)) * (1 / torch.tensor(facts.std))
    return normal_NHWC.permute(0, 3, 1, 2), torch.tensor(labels)


def train(model: str, dataset: str, raw_dir: Path, epochs: int, batch_size: int, lr: float, seed: int) -> Any:
    """The trained model: AdamW with timm's groups, cosine to 0 by the step, cross-entropy. Prints a line per epoch."""
    import torch
    from timm.optim import create_optimizer_v2
    from torch.nn.functional import cross_entropy

    import archs

    facts = DATASETS[dataset]
    x, y = load(dataset, "train", raw_dir)
    x_val, y_val = load(dataset, "val", raw_dir)
    seed_everything(seed, "init")
    net = archs.create(model, img_size=facts.img_size, num_classes=facts.num_classes, in_chans=facts.in_chans)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=lr, weight_decay=0.05, fused=True)
    per_epoch = len(x) // batch_size
    for epoch in range(epochs):
        net.train()
        total, order = 0.0, torch.from_numpy(permutation(len(x), seed, "order", epoch))
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            seed_everything(seed, "step", step, 0)  # for what the model draws, such as stochastic depth
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
            chosen = order[i * batch_size : (i + 1) * batch_size]
            loss = cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        net.eval()
        with torch.inference_mode():
            right = sum(
                int((net(x_val[part]).argmax(1) == y_val[part]).sum())
                for part in torch.arange(len(y_val)).split(batch_size)
            )
        print(f"epoch {epoch + 1}/{epochs}  train_loss {total / per_epoch:.4f}  acc1 {100 * right / len(y_val):.2f}")
    return net


def main() -> None:
    parser = Parser(prog="scripts/minimal.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mixer_nano", help="family_variant; scripts/list_models.py lists them")
    parser.add_argument("--dataset", default="digits", choices=list(DATASETS), metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument(
        "--raw-dir", type=Path, default=Path("data"), help="where its raw files are, or are downloaded to"
    )
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training set")
    parser.add_argument("-b", "--batch-size", type=int, default=128, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="initialisation and data order")
    train(**vars(parser.parse()))


if __name__ == "__main__":
    run_main(main)
