"""Loss and accuracy over a loader, counting exactly its samples."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from engine.data import Loader


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    prepare: Callable[[Tensor], Tensor],
    autocast: Callable[[], torch.autocast],
    each: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean cross-entropy `loss` and accuracies `top1`, `top5` in percent, over every sample once.

    Args:
        prepare: uint8 BHWC images -> the model's input.
        each: called after each batch, to show that the run is alive.
    """
    training = model.training
    model.eval()
    count, sums = 0, torch.zeros(3, dtype=torch.float64)
    for images, labels in loader.epoch(0):
        x_BCHW = prepare(images)
        labels = labels.to(x_BCHW.device, copy=True)
        with autocast():
            logits = model(x_BCHW)
        logits = logits.float()
        top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        sums += torch.stack(
            [F.cross_entropy(logits, labels, reduction="sum"), top[:, 0].sum(), top.any(1).sum()]
        ).to("cpu", torch.float64)  # fmt: skip
        count += len(labels)
        each()
    model.train(training)
    assert count == loader.num_samples, f"scored {count} of {loader.num_samples} samples"
    loss, top1, top5 = (sums / count).tolist()
    return {"loss": loss, "top1": 100 * top1, "top5": 100 * top5}
