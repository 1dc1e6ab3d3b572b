"""What the formulas of the papers are written with, and the comparison of a model with one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def random_images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_same(model: nn.Module, reference: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Equal to rounding in float64, and in float32 as near as float32 gets."""
    with torch.no_grad():
        expected = reference(x)
        found = model.double().eval()(x)
        rounded = model.float()(x.float()).double()
    assert expected.std() > 1e-3
    assert ((found - expected).norm() / expected.norm()).item() < 1e-12
    assert ((rounded - expected).norm() / expected.norm()).item() < 1e-5


def linear_of(state: State, key: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, state[f"{key}.weight"].flatten(1)) + state[f"{key}.bias"]


def gelu_of(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def layer_norm_of(state: State, key: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps) ** 0.5 * state[f"{key}.weight"] + state[f"{key}.bias"]


def batch_norm_of(state: State, key: str, x: Tensor, training: bool = False) -> Tensor:
    """Over a batch of vectors; in training it also moves the running statistics in `state`, by a tenth."""
    mean, variance = state[f"{key}.running_mean"], state[f"{key}.running_var"]
    if training:
        now, spread = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        mean.mul_(0.9).add_(0.1 * now)
        variance.mul_(0.9).add_(0.1 * spread * len(x) / (len(x) - 1))
        mean, variance = now, spread
    return (x - mean) / (variance + 1e-5) ** 0.5 * state[f"{key}.weight"] + state[f"{key}.bias"]


def doubled(model: nn.Module) -> State:
    return {key: value.double().clone() for key, value in model.state_dict().items()}
