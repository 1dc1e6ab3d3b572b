"""Size and cost of a model: parameters, MACs and FLOPs, counted on the meta device without allocating weights."""

from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import archs


def profile(name: str, *, img_size: int, in_chans: int, num_classes: int, **overrides: Any) -> dict[str, int]:
    """{"params", "macs", "flops"} at batch 1: matrix products and convolutions, 1 MAC = 2 FLOPs.

    Counted on the meta device, where fused attention is seen; on the CPU torch's counter misses it.
    """
    with torch.device("meta"):
        model = archs.create(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
        return {"params": count_params(model), **count_macs(model, torch.empty(1, in_chans, img_size, img_size))}


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, x_BCHW: torch.Tensor) -> dict[str, int]:
    """{"macs", "flops"} of one forward pass in evaluation mode."""
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(x_BCHW)
    model.train(training)
    flops = counter.get_total_flops()
    return {"macs": flops // 2, "flops": flops}


def own_shape(name: str) -> dict[str, int]:
    """Image size, channels and classes that a variant was published with; of a timm model, ImageNet's."""
    own = {"img_size": 224, "in_chans": 3, "num_classes": 1000}
    return own if name.startswith("timm/") else own | {k: v for k, v in archs.arguments(name).items() if k in own}


@torch.inference_mode()
def measure(
    name: str,
    device: torch.device,
    batch_size: int,
    amp: bool,
    *,
    img_size: int,
    in_chans: int,
    num_classes: int,
    **overrides: Any,
) -> dict[str, float]:
    """{"latency_ms" at batch 1, "images_per_s" at `batch_size`}: medians of forward passes, inputs on the device."""
    model = archs.create(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
    model.eval().to(device)

    def seconds(batch: int) -> float:
        x_BCHW = torch.randn(batch, in_chans, img_size, img_size, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            timer = Timer("model(x)", globals={"model": model, "x": x_BCHW}, num_threads=torch.get_num_threads())
            return timer.blocked_autorange(min_run_time=0.5).median

    return {"latency_ms": 1e3 * seconds(1), "images_per_s": batch_size / seconds(batch_size)}
