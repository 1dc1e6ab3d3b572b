"""How weights start where two or more papers mean the same start."""

from torch import nn


def normal_linears(*parts: nn.Module) -> None:
    """Linear layers of these parts: Normal(0.02) weights (cut off at 100 deviations, so never), zero biases."""
    for module in (each for part in parts for each in part.modules()):
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
