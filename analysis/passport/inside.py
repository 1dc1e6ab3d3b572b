"""What a module holds on its way from the image to the logits, unit by unit, whoever wrote it.

A unit is a module that stands in a row: what is called one after the other inside the model, containers and stages
taken apart, blocks left whole. Units without weights count where they change the number of numbers, as pooling does.
The last one is the logits. Letters as in archs/parts/backbone.py; what has no place in the image is no map.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

MOST = 24  # units that are looked at, evenly spaced
LOGITS = "logits"
ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
FIRST_TOKENS = (0, 1, 2, 5)  # what may stand before the tokens of the image: classes, distillation, registers


class Unit(NamedTuple):
    """What a module gives for images."""

    name: str
    kind: str
    """The class of the module."""
    output: Tensor
    """As the module gives it."""
    places: Tensor | None
    """The same as a map BHWC over the image; None where it is none."""


def units(model: nn.Module, x_BCHW: Tensor) -> list[Unit]:
    """All units in the order of their calls, the logits last; one module called twice is two."""
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str, module: nn.Module, given: tuple, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
            return None
        changed = not (given and isinstance(given[0], Tensor) and given[0].numel() == output.numel())
        if changed or any(weight.ndim > 1 for weight in module.parameters()):
            seen.append((name, module, output))
        return output.clone()  # what comes next may write into it

    hooks = [
        module.register_forward_hook(lambda module, given, output, name=name: keep(name, module, given, output))
        for name, module in _in_rows("", model)
    ]
    try:
        logits = model(x_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    if seen and seen[-1][2].shape == logits.shape:
        seen.pop()  # the classifier, whose output the logits are
    if len(seen) > MOST:
        seen = [seen[round(i * (len(seen) - 1) / (MOST - 1))] for i in range(MOST)]
    size, last = (x_BCHW.shape[2], x_BCHW.shape[3]), getattr(model, "output_fmt", "") == "NHWC"
    found = [Unit(name, type(module).__name__, y, as_map(y, size, last)) for name, module, y in seen]
    return [*found, Unit(LOGITS, type(model).__name__, logits, None)]


def as_map(y: Tensor, size: tuple[int, int], channels_last: bool = False) -> Tensor | None:
    """An output as a map BHWC of an image of H x W pixels, from its shape; None where it is none.

    Tokens are BNC, those of a grid of squares, in rows; class tokens before them are left out.

    Args:
        channels_last: how to read what could be both, BCHW and BHWC.
    """
    if y.ndim == 4:
        first, last = (_is_grid(shape, size) for shape in (y.shape[2:], y.shape[1:3]))
        if first and not (last and channels_last):
            return y.permute(0, 2, 3, 1) if y.shape[2] * y.shape[3] > 1 else None
        return y if last and y.shape[1] * y.shape[2] > 1 else None
    if y.ndim == 3:
        for first in FIRST_TOKENS:
            if grid := _grid(y.shape[1] - first, size):
                return y[:, first:].unflatten(1, grid)
    return None


def _is_grid(grid: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether the sides are those of the image, over one stride but for the rounding of paddings."""
    (h, w), (H, W) = grid, size
    return h <= H + 2 and w <= W + 2 and abs(h * W - w * H) <= max(H, W) / 2


def _grid(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of so many tokens; None where no squares of pixels make them."""
    if count < 2 or size[0] * size[1] % count:
        return None
    side = math.isqrt(size[0] * size[1] // count)
    grid = size[0] // side, size[1] // side
    return grid if grid[0] * side == size[0] and grid[1] * side == size[1] and grid[0] * grid[1] == count else None


def _in_rows(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that stand in rows, by name; the model itself where nothing does."""
    children = dict(module.named_children())
    taken_apart = not name or isinstance(module, ROWS) or _of_blocks(module) or any(map(_of_blocks, children.values()))
    if not children or not taken_apart:
        yield name, module
        return
    for key, child in children.items():
        yield from _in_rows(f"{name}.{key}" if name else key, child)


def _of_blocks(module: nn.Module) -> bool:
    """Whether its members are blocks of one kind, which are modules with parts."""
    children = list(module.children())
    return len(children) > 1 and len({*map(type, children)}) == 1 and any(True for _ in children[0].children())
