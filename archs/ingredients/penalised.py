"""The weights of a model that read places of a plane, which a penalty can hold: token mixing and flat first layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archs.ingredients.lift import Geometry
from archs.ingredients.mixer import MatrixMixer, Mixer
from archs.lattice import Stem
from archs.mixing import banded, dense, dial, two
from archs.mixing import token_mlp as token_mlp_
from archs.parts.backbone import Backbone, Grid
from archs.parts.layers import Mlp, OverTokens, Patchify


@dataclass(frozen=True)
class Matrix:
    """One parameter.

    Args:
        name: among the model's parameters.
        stored: the parameter; an effective weight is `constant` times a stored one.
        dense: its effective weights, written out where some are always 0, as archs/ingredients/lift.py reads them.
        geometry: of its places; of a matrix that is not `placed` the stride is a choice, as its units stand nowhere.
    """

    name: str
    stored: nn.Parameter
    dense: Callable[[], Tensor]
    geometry: Geometry
    placed: bool = True
    constant: float = 1.0


def find(model: nn.Module) -> list[Matrix]:
    """All of a model's that learn, in its order; [] for a model that has none, or is none of ours."""
    if not isinstance(model, Backbone):
        return []
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (Stem, Patchify)):
            found += _first_layer(name, module, model)
        elif isinstance(module, Mixer):
            found += _mixer(name, module)
        elif isinstance(module, OverTokens):
            found += _over_tokens(name, module, model)
    return [matrix for matrix in found if matrix.stored.requires_grad]


def _first_layer(name: str, module: Stem | Patchify, model: Backbone) -> list[Matrix]:
    """Where it reads the whole image. Units of a lattice's `pixels` stand on its tokens, and are read by channel."""
    in_chans, height, width = model.input_size
    key, weight = ("weight", module.weight) if isinstance(module, Stem) else ("proj.weight", module.proj.weight)
    if weight.shape[1:] != (in_chans * height * width,):
        return []
    grid = (height, width)
    if isinstance(module, Patchify) or not module.placed:
        geometry = Geometry(grid=grid, in_chans=in_chans)
        return [Matrix(f"{name}.{key}", weight, lambda: weight, geometry, placed=False)]
    if module.patch_size[0] != module.patch_size[1]:  # no one stride
        return []
    num_tokens, geometry = (
        module.grid[0] * module.grid[1],
        Geometry(grid=grid, stride=module.patch_size[0], in_chans=in_chans),
    )
    return [Matrix(f"{name}.{key}", weight, lambda: weight.unflatten(0, (num_tokens, -1)).transpose(0, 1), geometry)]


def _mixer(name: str, mixer: Mixer) -> list[Matrix]:
    """Own weights for each place; of a dial what stands beside its kernel, of two maps the one that reads tokens."""
    key, placed = "weight", True
    if isinstance(mixer, dial.Mixing):
        key = "rest"
    elif isinstance(mixer, (two.Mixing, token_mlp_.Mixing)):
        key, placed = "fc1", False
    elif not isinstance(mixer, (dense.Mixing, banded.Mixing)):
        return []
    if key not in mixer._parameters:  # frozen
        return []
    whole = key == "weight" and isinstance(mixer, MatrixMixer)
    values = mixer.matrices if whole else lambda: mixer.value(key)
    own = {"placed": placed, "constant": mixer.constant[key]}
    return [Matrix(f"{name}.{key}", mixer._parameters[key], values, Geometry(grid=mixer.grid), **own)]


def _over_tokens(name: str, module: OverTokens, model: Backbone) -> list[Matrix]:
    grid = _tokens(model)
    inner, key = (module.mix.fc1, "mix.fc1") if isinstance(module.mix, Mlp) else (module.mix, "mix")
    num_tokens = grid[0] * grid[1]
    if not isinstance(inner, nn.Linear) or inner.in_features != num_tokens or num_tokens == 1:
        return []
    placed, weight = inner is module.mix and inner.out_features == num_tokens, inner.weight
    return [Matrix(f"{name}.{key}.weight", weight, lambda: weight, Geometry(grid=grid), placed=placed)]


def _tokens(model: Backbone) -> Grid:
    _, height, width = model.input_size
    return model.grid(torch.empty(1, 1, height, width, device="meta"))
