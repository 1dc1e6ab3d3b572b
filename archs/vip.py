"""Vision Permutator: three branches mix rows, columns and channels, and a softmax weighs them per channel.

The channels are cut into as many segments as the grid has rows, so that a segment and a row or column together are
again `dim` numbers, and one dim x dim matrix mixes both at once. The grid must therefore be square and its side must
divide `dim`. The number of weights does not depend on the grid, yet what each of them reads does: bound to one grid.

Deviations: none in the function. The authors' code has four stages and a table of where the grid is halved; here it
is halved wherever two stages differ in width, which is the same in every published variant (`m7` after its second
stage, `s7` and `l7` after their first, `s14` nowhere). `nano`, `1m` and `5m` are ours, on one grid like `s14`.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archs.attention import removed
from archs.attention.removed import Removable
from archs.parts.backbone import Grid, grid_of, ramp
from archs.parts.bias import Bias
from archs.parts.init import normal_linears
from archs.parts.layers import Mlp, OverMap, Patchify, Residual, Reweight
from archs.parts.relabeling import Relabeling, along, mirror, on_stem
from archs.parts.weights import State, frame

SOURCE = "arXiv 2106.12368, table 2; code: houqb/VisionPermutator models/vip.py"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("rows_columns",)
VARIANT_SYMMETRY = {"s7": ("within", "flip"), "m7": ("within", "flip"), "l7": ("within", "flip")}
DROP_PATH = "ramp"
RATIO = "mlp_ratio"
SQUARE_IMAGES = True
# No shape depends on the grid; what a weight means does.
LOADS_ON_ANY_GRID = True
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": [32], "depth": [3]},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": [128], "depth": [6]},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": [240], "depth": [8]},
    "s14": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 14,
        "dim": [384, 384, 384, 384],
        "depth": [4, 3, 8, 3],
    },
    "s7": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 7,
        "dim": [192, 384, 384, 384],
        "depth": [4, 3, 8, 3],
    },
    "m7": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 7,
        "dim": [256, 256, 512, 512],
        "depth": [4, 3, 14, 3],
    },
    "l7": {
        "img_size": 224,
        "num_classes": 1000,
        "patch_size": 7,
        "dim": [256, 512, 512, 512],
        "depth": [8, 8, 16, 4],
    },
}
EXPECTED = {
    "nano": {"params": 35_522, "macs": 496_960},
    "1m": {"params": 1_098_570, "macs": 63_407_360},
    "5m": {"params": 5_106_970, "macs": 296_112_480},
    "s14": {"params": 29_892_904, "macs": 6_855_613_440},
    "s7": {"params": 25_114_984, "macs": 6_901_767_168},
    "m7": {"params": 55_272_488, "macs": 16_284_307_456},
    "l7": {"params": 87_784_936, "macs": 24_340_320_256},
}


Replacement = removed.Replacement  # `double`, `skip`, or a file of archs/mixing/


class PermuteMlp(nn.Module):
    """Linear over (row, segment channel), over (column, segment channel) and over channels; re-weighted, projected."""

    def __init__(self, dim: int, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.mlp_h = nn.Linear(dim, dim, bias=False)
        self.mlp_w = nn.Linear(dim, dim, bias=False)
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.reweight = Reweight(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        rows = self._traded(self.mlp_h(self._traded(x_BHWC, 1)), 1)
        columns = self._traded(self.mlp_w(self._traded(x_BHWC, 2)), 2)
        return self.proj(self.reweight(rows, columns, self.mlp_c(x_BHWC)))

    def _traded(self, x_BHWC: Tensor, axis: int) -> Tensor:
        """Rows (axis 1) or columns (2) and segments, of which there are as many, in each other's place."""
        return x_BHWC.unflatten(3, (self.segments, -1)).transpose(axis, 3).flatten(3)


def block(dim: int, grid: Grid, drop_path: float = 0.0, mlp_ratio: float = 3.0) -> nn.Module:
    """One Permutator layer. Raises ValueError unless the grid is square and its side divides `dim`."""
    if grid[0] != grid[1]:
        raise ValueError(f"the grid must be square, it is {grid[0]} x {grid[1]} tokens; give a square img_size")
    if dim % grid[0]:
        near = ", ".join(str(size) for size in (dim - dim % grid[0], dim - dim % grid[0] + grid[0]) if size)
        raise ValueError(f"dim {dim} is not a multiple of the grid's side, {grid[0]} tokens; nearest: {near}")
    return nn.Sequential(
        Residual(nn.LayerNorm(dim), PermuteMlp(dim, segments=grid[0]), drop_path),
        Residual(nn.LayerNorm(dim), Mlp(dim, int(mlp_ratio * dim)), drop_path),
    )


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: Sequence[int],
    depth: Sequence[int],
    in_chans: int = 3,
    mlp_ratio: float = 3.0,
    drop_path: float = 0.0,
    mlp_layers: Sequence[int] = (),
    replacement: Replacement = "double",
) -> Removable:
    """A Permutator with one stage per entry of `dim` and `depth`, the grid halved wherever the width changes.

    Of one with a single stage `mlp_layers` have lost what mixes tokens, and `replacement` stands there
    (archs/attention/removed.py).
    """
    if len(dim) != len(depth):
        raise ValueError(f"dim has {len(dim)} stages, depth has {len(depth)}")
    grid, rates = grid_of(img_size, patch_size), iter(ramp(drop_path, sum(depth)))
    stages: list[nn.Module] = []
    for i, (width, layers) in enumerate(zip(dim, depth, strict=True)):
        if i and width != dim[i - 1]:
            if grid[0] % 2:
                raise ValueError(f"the grid of {grid[0]} x {grid[1]} tokens cannot be halved; give another img_size")
            grid = (grid[0] // 2, grid[1] // 2)
            stages.append(OverMap(nn.Conv2d(dim[i - 1], width, kernel_size=2, stride=2)))
        stages.append(nn.Sequential(*(block(width, grid, next(rates), mlp_ratio) for _ in range(layers))))
    head = nn.Linear(dim[-1], num_classes)
    stages = removed.take(stages, mlp_layers, replacement, partial(nn.LayerNorm, dim[0]), dim[0], grid)
    return init(Removable(Patchify(patch_size, dim[0], in_chans), stages, nn.LayerNorm(dim[-1]), head))


def width_step(given: Mapping[str, Any]) -> int:
    """What widths must be multiples of, given the other arguments: the side of the first grid fits every stage."""
    return grid_of(given["img_size"], given["patch_size"])[0]


def init(model: Removable) -> Removable:
    """Normal(0.02) weights and zero biases; stem and transitions keep the convolution's default (authors' code)."""
    normal_linears(model.stages, model.head)
    removed.draw(model)
    return model


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """The image is the variant's: no shape tells the grid that the weights are bound to."""
    return frame(state_dict, own, None) | {"img_size": own["img_size"]}


leftover = removed.leftover
afresh = removed.afresh


def relabel(state_dict: State, relabeling: Relabeling) -> State | None:
    """The matrix over rows follows their order, that over columns theirs; in a pyramid if mirrored."""
    state, lines, grid = on_stem(state_dict, relabeling), relabeling.lines, relabeling.grid
    kernels = {"stages.*.layer.weight": (2, 3)}
    pyramid = any(fnmatch(key, pattern) for key in state_dict for pattern in kernels)
    if state is None or lines is None or removed.moves(state_dict) or (pyramid and relabeling.mirrored is None):
        return None
    for i in range(1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("stages."))):
        if f"stages.{i}.layer.weight" in state:
            grid = (grid[0] // 2, grid[1] // 2)
            continue
        for name, line, side in zip(("mlp_h", "mlp_w"), lines, grid, strict=True):
            # Of a coarser grid only the direction is left.
            order = line if side == len(line) else torch.arange(side).flip(0) if line[0] else torch.arange(side)
            pattern = f"stages.{i}.*.{name}.weight"
            dim = next((len(value) for key, value in state.items() if fnmatch(key, pattern)), 0)
            segment = torch.arange(dim // side)
            state = along(state, (order[:, None] * len(segment) + segment).flatten(), {pattern: (0, 1)})
    return mirror(state, relabeling, kernels) if pyramid else state
