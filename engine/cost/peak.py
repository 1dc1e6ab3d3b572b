"""The machine's own matrix-product rate, against which a training's use of it (MFU) is stated."""

import functools
import time

import torch


@functools.cache
def matmul_flops(device: str, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of square products, the best of a few: what this machine can do now, not what its maker promises.

    Measured once per process, in some 0.1 s. `threads` is part of the question, not set here.
    """
    side = 8192 if device == "cuda" else 1536
    a = torch.randn(side, side, device=device, dtype=dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 0.1 or best == float("inf"):
        start = _clock(device)
        a @ a
        best = min(best, _clock(device) - start)
    return 2 * side**3 / best


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
