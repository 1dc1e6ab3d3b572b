"""Randomness as a pure function of (seed, purpose, position): nothing has to be saved to resume exactly.

Every consumer derives its own stream from the run's one seed. Seeds that differ by one do not give streams that are
shifted by one, as `seed + epoch` would.
"""

import hashlib
import random

import numpy as np


def derive(seed: int, purpose: str, *position: int) -> int:
    """An unsigned 64-bit number from the seed, the purpose and the position (epoch, step, ...)."""
    text = "/".join(map(str, (seed, purpose, *position)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def permutation(count: int, seed: int, purpose: str, *position: int) -> np.ndarray:
    """A permutation of 0..count-1, int64."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *position))).permutation(count)


def seed_everything(seed: int, purpose: str, *position: int) -> None:
    """Set the global generators of Python, NumPy and torch, for libraries that draw from those (timm's mixup)."""
    import torch

    number = derive(seed, purpose, *position)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    # torch.manual_seed also visits every kind of accelerator: 0.1 ms, too much for each step of a small model.
    torch.default_generator.manual_seed(number >> 1)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number >> 1)
