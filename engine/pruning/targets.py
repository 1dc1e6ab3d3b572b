"""Weights that read places, which pruning can take: the first layer of a flat net, matrices over the tokens.

U are units (rows), P places, C channels at a place. Distances are in places of the grid, the next one in a row at 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archs.ingredients.mixer import Mixer
from archs.lattice import Stem
from archs.parts.backbone import Backbone, Grid
from archs.parts.layers import OverTokens, Patchify
from engine.errors import Refusal


@dataclass(frozen=True)
class Target:
    """One parameter.

    Args:
        name: in the model's state.
        weight: its values as (U, P, C), on the CPU.
        chans_first: whether a row is stored as (C, P), as pixels are.
        at: coordinates of the place that unit u is about, (U, 2); None: wherever the mass of its weights lies.
        places: coordinates of the places, (P, 2).
        uses: products that one weight takes part in, of one image.
    """

    name: str
    weight: Tensor
    places: Tensor
    chans_first: bool = False
    at: Tensor | None = None
    uses: int = 1

    def distances(self) -> Tensor:
        """Of each place from the unit's own, (U, P) float64."""
        middle = self.at
        if middle is None:
            mass_UP = self.weight.double().square().sum(2)
            middle = mass_UP @ self.places / mass_UP.sum(1, keepdim=True).clamp(min=1e-300)
        return torch.cdist(middle[None], self.places[None])[0]

    def stored(self, values_UPC: Tensor, like: Tensor) -> Tensor:
        """Values for each weight, in the parameter's own shape."""
        return (values_UPC.transpose(1, 2) if self.chans_first else values_UPC).reshape(like.shape)


def coordinates(grid: Grid) -> Tensor:
    """Row and column of each place, (P, 2) float64."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    return torch.cartesian_prod(rows, columns)


def find(model: nn.Module) -> list[Target]:
    """All of a model's, the first layer first. Raises Refusal for a model that has none."""
    found = [] if not isinstance(model, Backbone) else [*_first_layer(model), *_over_tokens(model)]
    if not found:
        raise Refusal(
            "this model has no weights that read places: known are the first layer of a flat net (mlp, bmlp, lattice "
            "with stem=pixels) and full matrices over the tokens (lattice with mixer=dense or dense_c, resmlp)"
        )
    return found


def _first_layer(model: Backbone) -> list[Target]:
    chans, height, width = model.input_size
    for name, module in model.stem.named_modules(prefix="stem"):
        weight = module.weight if isinstance(module, Stem) else getattr(getattr(module, "proj", None), "weight", None)
        if not isinstance(module, (Stem, Patchify)) or weight.shape[1:] != (chans * height * width,):
            continue
        key, at = "weight" if isinstance(module, Stem) else "proj.weight", None
        if isinstance(module, Stem) and module.placed:  # unit c of token i stands in the middle of its patch
            p, q = module.patch_size
            middle = coordinates(module.grid) * torch.tensor([p, q]) + torch.tensor([p - 1, q - 1]) / 2
            at = middle.repeat_interleave(len(weight) // len(middle), 0)
        w_UPC = _values(weight).unflatten(1, (chans, -1)).transpose(1, 2)
        return [Target(f"{name}.{key}", w_UPC, coordinates((height, width)), chans_first=True, at=at)]
    return []


def _over_tokens(model: Backbone) -> list[Target]:
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            grid, weight, key = module.grid, module._parameters.get("weight"), "weight"
            chans = module.dim
        elif isinstance(module, OverTokens) and isinstance(module.mix, nn.Linear):
            _, height, width = model.input_size
            grid = model.grid(torch.empty(1, 1, height, width, device="meta"))
            weight, key, chans = module.mix.weight, "mix.weight", model.num_features
        else:
            continue
        num_tokens = grid[0] * grid[1]
        if weight is None or tuple(weight.shape[-2:]) != (num_tokens, num_tokens) or num_tokens == 1:
            continue
        places = coordinates(grid)
        w_UPC, groups = _values(weight).reshape(-1, num_tokens, 1), weight.numel() // num_tokens**2
        found.append(Target(f"{name}.{key}", w_UPC, places, at=places.repeat(groups, 1), uses=chans // groups))
    return found


def _values(weight: Tensor) -> Tensor:
    """On the CPU, but for those of a model without memory."""
    return weight.detach() if weight.is_meta else weight.detach().cpu()
