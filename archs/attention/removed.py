"""What stands in place of the token mixing of a layer that is gone: attention, or a family's MLP across the tokens.

A layer is two residual halves, mixing and MLP; `mlp_layers` are those whose first half is gone, and `replacement` says
what is there instead:

    double   x <- 2x: mixing diluted into the identity of its input (archs/attention/diluted.py)
    skip     x <- x: the residual without its branch
    NAME     x <- x + Mix(LN(x)): a mixer of the lattice, archs/mixing/NAME.py with the lattice's defaults, between the
             patches; the class token has no place on the grid and is left as it is

A mixer starts afresh as in the lattice, so that its output has the mean square 1 / (2 depth), behind the norm that the
mixing had.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archs.attention.diluted import Diluted, Double
from archs.ingredients import declared
from archs.ingredients.mixer import Mixer, Start
from archs.parts.backbone import Backbone, Grid
from archs.parts.family import read
from archs.parts.layers import Residual
from archs.parts.weights import State

Replacement = str  # `double`, `skip`, or a file of archs/mixing/
PLAIN = ("double", "skip")
SEVERAL = "layers lose their mixing where all are on one grid; this model has several"


class Skip(nn.Module):
    """x: a residual without its branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Replaced(nn.Module):
    """x + mixer(norm(x)) between patches, of a map BHWC or of a sequence (B, N, C), behind its class token if any."""

    def __init__(self, norm: nn.Module, mixer: Mixer) -> None:
        super().__init__()
        self.norm, self.mixer = norm, mixer

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x + self.mixer(self.norm(x))
        first = x.shape[1] - self.mixer.num_tokens
        patches = x[:, first:]
        mixed = patches + self.mixer(self.norm(patches).unflatten(1, self.mixer.grid)).flatten(1, 2)
        return torch.cat([x[:, :first], mixed], 1) if first else mixed


class Removable(Backbone):
    """A Backbone of one stage, whose layers are pairs of halves of which the first, the mixing, can go."""

    merging = False
    """Whether its layers merge tokens."""
    mixing = "mixing of tokens"
    """What it can lose, in words."""

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers spare: tables of mixers that stand in place of others."""
        mixers = ((key, module) for key, module in self.named_modules() if isinstance(module, Mixer))
        return {f"{key}.{name}" for key, module in mixers for name in module.spared()}

    def dilute(self, layers: Sequence[int]) -> list[Diluted]:
        """Put the mixing of these layers on its way out, at a share of 1 at first; the halves that know the share.

        Raises ValueError for a layer that has none, and where layers are on several grids.
        """
        if len(self.stages) > 1:
            raise ValueError(SEVERAL)
        stage, halves = self.stages[0], []
        for i in layers:
            if i not in range(len(stage)) or not isinstance(stage[i][0], Residual):
                raise ValueError(f"layer {i} has no {self.mixing} to dilute")
            stage[i][0] = Diluted(stage[i][0])
            halves.append(stage[i][0])
        return halves


def take(
    stages: Sequence[nn.Module],
    mlp_layers: Sequence[int],
    replacement: Replacement,
    norm: Callable[[], nn.Module],
    dim: int,
    grid: Grid,
    free: bool = False,
) -> list[nn.Module]:
    """`stages` with the mixing of these layers gone, of a family whose blocks are two halves; `norm` as in `half`.

    Args:
        free: whether the family's weights fit any grid. A mixer's do not: those of a kernel, too, are stored as a
            multiple of what the start on its grid asks for.

    Raises:
        ValueError: layers or a replacement that are not there, or layers of more stages than one.
    """
    if mlp_layers and len(stages) > 1:
        raise ValueError(SEVERAL)
    depth = len(stages[0])
    check(mlp_layers, replacement, depth)
    if free and replacement not in PLAIN:
        known = ", ".join(PLAIN)
        raise ValueError(f"replacement {replacement} belongs to one grid, and this family to none; known here: {known}")
    for i in sorted(mlp_layers):
        stages[0][i][0] = half(replacement, norm, dim, grid, depth)
    return list(stages)


def check(mlp_layers: Sequence[int], replacement: Replacement, depth: int) -> None:
    """Raises ValueError for layers or a replacement that are not there."""
    if wrong := [i for i in mlp_layers if i not in range(depth)]:
        raise ValueError(f"mlp_layers {wrong} are not among the blocks 0 to {depth - 1}")
    known = (*PLAIN, *declared.names())
    if replacement not in known:
        close = difflib.get_close_matches(replacement, known, n=3, cutoff=0.4) or known
        raise ValueError(f"replacement '{replacement}' is unknown; close: {', '.join(close)}; each is {PLAIN[0]}, ...")
    if replacement != PLAIN[0] and not mlp_layers:
        raise ValueError(f"replacement {replacement} says what stands in place of mixing; give mlp_layers, too")


def half(replacement: Replacement, norm: Callable[[], nn.Module], dim: int, grid: Grid, depth: int) -> nn.Module:
    """The first half of a layer without its mixing; a mixer is not drawn yet (`draw`)."""
    if replacement in PLAIN:
        return {"double": Double, "skip": Skip}[replacement]()
    defaults = read("lattice").defaults
    own = {key: defaults[key] for key in declared.read(replacement).arguments}
    made = importlib.import_module(f"archs.mixing.{replacement}").Mixing
    return Replaced(norm(), made(dim, grid, Start(g0=(2 * depth) ** -0.5), **own))


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Start the mixers that stand in place of others; draws nothing where there are none."""
    for module in model.modules():
        if isinstance(module, Replaced) and not any(p.is_meta for p in module.parameters()):
            number = torch.randint(2**62, (), device="cpu").item()
            module.mixer.draw(torch.Generator("cpu").manual_seed(number), torch.arange(module.mixer.num_tokens))


def kept(own: Mapping[str, Any]) -> int:
    """The first layer that has its mixing, by the arguments of `build`; 0 if none has."""
    return next((i for i in range(own["depth"]) if i not in own["mlp_layers"]), 0)


def leftover(state: State, own: Mapping[str, Any]) -> tuple[set[str], str]:
    """Weights of the mixing of layers that have none: of a file from before they lost it, or that keeps it, inert."""
    inside = "" if own["replacement"] in PLAIN else "branch."
    more = ("scale.",) if inside else ()
    gone = tuple(f"stages.0.{i}.0.{part}" for i in own["mlp_layers"] for part in (inside, *more))
    keys = {key for key in state if gone and key.startswith(gone)}
    layers = sorted({int(key.split(".")[2]) for key in keys})
    words = f"mixing of layers {layers}, where the model has none; a file that used it there computes something else"
    return keys, words


def afresh(keys: Sequence[str], state: State, own: Mapping[str, Any]) -> set[str]:
    """Keys of mixers that a file may lack: it has what they stand in place of."""
    ours = {i: f"stages.0.{i}.0.mixer." for i in own["mlp_layers"]}
    before = {i for i in ours if any(key.startswith(f"stages.0.{i}.0.branch.") for key in state)}
    return {key for key in keys if any(key.startswith(ours[i]) for i in before)}


def moves(state: State) -> bool:
    """Whether mixers stand in place of others, whose weights no rule of the family relabels."""
    return any(key.startswith("stages.0.") and ".0.mixer." in key for key in state)
