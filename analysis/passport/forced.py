"""What a module is forced to be, whatever it learns: from which pixels its units read, and which moves they follow.

All is measured in evaluation mode, in float64 where the module can, on weights drawn at random (`drawn_anew`), so that
nothing holds because of how training starts, and on images of noise.

A unit's field are the pixels i with a gradient dE / dx_i other than exactly 0, E the output at the middle place in one
random direction over the channels (of what is no map, in one over all of its numbers). `share_95` is the smallest share
of the pixels with 95 % of the sum of |dE / dx_i|, both over some images (Luo et al., arXiv 1701.04128). A pooling by
the maximum reads one pixel of each window at a time: its field is what some images found.

A move T of the image is followed by a map y where y(T x) = T y(x), and not seen by logits where y(T x) = y(x):

    error = |y(T x) - T y(x)| / |y(x)|        null = the same with y of another image instead of y(T x)

so that error / null is 0 for a law and about 1 where nothing is left; EXACT and ROUNDING say what counts as 0. What is
shifted comes in again on the other side. A map that does not follow that is compared only where no field meets the
border. Where its images have no such place larger ones are taken, if the module takes them and its maps grow alike;
else nothing can be said. By one pixel only maps of stride one can follow.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analysis.measures import fields
from analysis.passport.inside import LOGITS, MOST, Unit, units
from analysis.probes.equivariance import permute_patches
from analysis.probes.receptive_field import randomise, share

MASS = 0.95
EXACT = {"float64": 1e-9, "float32": 1e-4}  # of the null, and at least
ROUNDING = {"float64": 1e-12, "float32": 1e-5}  # of the answer, whose null must be 100 times that
IMAGES, LARGE = 8, 64  # and two of images with a side above that
CONSTANT = "its answers hardly depend on the image"
BORDER = "every field meets the border"
MOST_SHIFTS = 5  # by one pixel, and by the strides of the maps


@dataclass(frozen=True)
class Field:
    """From where a unit reads; `extent` is the height and width of the smallest box around its pixels."""

    name: str
    kind: str
    grid: tuple[int, int] | None
    mass: np.ndarray
    """|gradient| of every pixel (H, W), mean over the images."""

    @property
    def label(self) -> str:
        """A name that is a mere number tells nothing."""
        return f"{self.name} {self.kind}" if self.name.isdigit() else self.name

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """First and last row, first and last column; None where it reads nothing."""
        rows, columns = (np.flatnonzero(self.mass.any(axis)) for axis in (1, 0))
        return (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) if len(rows) else None

    @property
    def extent(self) -> tuple[int, int]:
        return (self.box[1] - self.box[0] + 1, self.box[3] - self.box[2] + 1) if self.box else (0, 0)

    @property
    def record(self) -> dict[str, Any]:
        """As the JSON holds it."""
        found: dict[str, Any] = {"unit": self.name, "kind": self.kind, "grid": self.grid and list(self.grid)}
        found |= {"height_px": self.extent[0], "width_px": self.extent[1], "share": float((self.mass > 0).mean())}
        reads = bool(self.box)
        found["share_95"] = float(share(self.mass, MASS)) if reads else 0.0
        return found | {"half_radius_px": float(fields.half_radius(self.mass)) if reads else None}


class Followed(NamedTuple):
    """How a unit answers a move; NaN where nothing can be said, `why` tells."""

    unit: str
    error: float
    null: float
    why: str = ""
    px: int | None = None
    """Height of the images that told it, where they are larger than the module's."""

    def verdict(self, dtype: str) -> str:
        """ "exact" to rounding, "broken", or "" where it cannot be said."""
        if math.isnan(self.error):
            return ""
        return "exact" if self.error <= max(EXACT[dtype] * self.null, ROUNDING[dtype]) else "broken"


@dataclass(frozen=True)
class Forced:
    """What was found; `moves` has an answer of every unit to every move, the logits' last."""

    dtype: str
    images: int
    fields: list[Field]
    moves: dict[str, list[Followed]]
    patch: int | None = None
    """Side in pixels of what `patches` puts in another order."""

    @property
    def exact(self) -> float:
        return EXACT[self.dtype]

    def title(self, move: str) -> str:
        """What is done to the image."""
        kind, _, step = move.partition(" ")
        if kind == "shift":
            return f"moved by {step} px"
        words = {"mirror": "mirrored", "quarter turn": "turned by 90°", "pixels": "pixels in any order"}
        return words.get(move, f"patches of {self.patch} px in any order")

    def answer(self, move: str, logits: bool) -> Followed | None:
        """Of the logits, or of the deepest map that says something; None where none does."""
        found = [one for one in self.moves[move] if (one.unit == LOGITS) == logits and not math.isnan(one.error)]
        return found[-1] if found else None

    def exact_to(self, move: str) -> str | None:
        """The deepest map up to which all that say something follow it exactly; None where the first one does not."""
        last = None
        for one in self.moves[move]:
            if one.unit == LOGITS or one.verdict(self.dtype) == "broken":
                break
            last = one.unit if one.verdict(self.dtype) == "exact" else last
        return last


def drawn_anew(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic drawn at random (`receptive_field.randomise`).

    Other buffers are of the architecture, such as a mask or a filter that is not learned, and stay.
    """
    kept = {name: each.clone() for name, each in model.named_buffers() if ".running_" not in f".{name}"}
    randomise(model, seed)
    for name, each in model.named_buffers():
        if name in kept:
            each.data.copy_(kept[name])
    return model


def measure(
    model: nn.Module, shape: tuple[int, int, int], patch: int | None = None, tell: Callable[[str], None] = print
) -> Forced:
    """Field and moves of a copy of the model with random weights, on the CPU.

    Args:
        shape: of an image, (C, H, W).
        patch: side of the patches in pixels; by default the stride of the first map with one.

    Raises RuntimeError and what else a module raises that cannot be asked so.
    """
    count = IMAGES if max(shape[1:]) <= LARGE else 2
    model = drawn_anew(copy.deepcopy(model).cpu()).eval().requires_grad_(False)
    x_BCHW = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        model, dtype = model.double(), "float64"
        with torch.no_grad():
            model(x_BCHW[:1])
    except (RuntimeError, TypeError):  # it makes tensors of float32 of its own
        model, x_BCHW, dtype = model.float(), x_BCHW.float(), "float32"
    found = reach(model, x_BCHW)
    tell(f"receptive field of {len(found)} units")
    patch = patch or first_stride(found, shape[1:])
    moves = followed(model, x_BCHW, found, patch)
    if any(each.why == BORDER for answers in moves.values() for each in answers):
        moves |= away_from_borders(model, x_BCHW, found, moves)
    tell(f"{len(moves)} moves of the image")
    return Forced(dtype, count, found, moves, patch)


def reach(model: nn.Module, x_BCHW: Tensor) -> list[Field]:
    """The field of every unit."""
    x_BCHW = x_BCHW.detach().clone().requires_grad_()
    found = []
    for unit in units(model, x_BCHW):
        y = unit.output if unit.places is None else _middle(unit.places)
        direction = torch.randn(y.shape[1:], dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        g = None
        if y.requires_grad:
            (g,) = torch.autograd.grad((y * direction).sum(), x_BCHW, retain_graph=True, allow_unused=True)
        mass = np.zeros(x_BCHW.shape[2:]) if g is None else g.abs().sum(1).mean(0).double().numpy()
        if not np.isfinite(mass).all():
            raise RuntimeError(f"on random weights the gradient of {unit.name} is not finite")
        grid = None if unit.places is None else (unit.places.shape[1], unit.places.shape[2])
        found.append(Field(unit.name, unit.kind, grid, mass))
    return found


def first_stride(found: Sequence[Field], size: tuple[int, ...]) -> int | None:
    """Pixels from place to place of the first map that has fewer places than the image; None without one."""
    strides = (stride for each in found if (stride := _stride(each.grid, size)))
    return next((stride for stride in strides if stride > 1), None)


@torch.no_grad()
def followed(model: nn.Module, x_BCHW: Tensor, found: Sequence[Field], patch: int | None) -> dict[str, list[Followed]]:
    """How every unit answers every move that the size of the image allows."""
    size = (x_BCHW.shape[2], x_BCHW.shape[3])
    before, again = units(model, x_BCHW), units(model, x_BCHW)
    if any(not torch.equal(a.output, b.output) for a, b in zip(before, again, strict=True)):
        raise RuntimeError("in evaluation mode it answers the same images differently")
    strides = {patch or 1, *(_stride(each.grid, size) or 1 for each in found)}
    steps = sorted({1, *(stride for stride in strides if 2 * stride <= min(size))})[:MOST_SHIFTS]
    moves = {f"shift {step}": _of_shift(model, x_BCHW, before, found, step) for step in steps}

    def rearranged(moved_BCHW: Tensor, of_map: Callable[[Tensor], Tensor | None]) -> list[Followed]:
        after = units(model, moved_BCHW)
        return [_compared(a, b, of_map) for a, b in zip(before, after, strict=True)]

    moves["mirror"] = rearranged(x_BCHW.flip(3), lambda y: y.flip(2))
    if size[0] == size[1]:
        moves["quarter turn"] = rearranged(x_BCHW.rot90(1, (2, 3)), lambda y: y.rot90(1, (1, 2)))
    if patch and patch > 1 and not (size[0] % patch or size[1] % patch):
        moves["patches"] = _permuted(rearranged, x_BCHW, patch)
    moves["pixels"] = _permuted(rearranged, x_BCHW, 1)
    return moves


@torch.no_grad()
def away_from_borders(
    model: nn.Module, x_BCHW: Tensor, found: Sequence[Field], moves: dict[str, list[Followed]]
) -> dict[str, list[Followed]]:
    """The shifts of `moves` with answers of larger images where every field of its own meets the border."""
    times = larger(model, x_BCHW)
    if times == 1:
        return {}
    shape = (2, x_BCHW.shape[1], *(times * side for side in x_BCHW.shape[2:]))
    large_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=x_BCHW.dtype)
    before, told = units(model, large_BCHW), {}
    with torch.enable_grad():
        wide = reach(model, large_BCHW)
    for move in (move for move, answers in moves.items() if any(each.why == BORDER for each in answers)):
        answers = _of_shift(model, large_BCHW, before, wide, int(move.partition(" ")[2]))
        # By name: a pooling that changes nothing at its own size is a unit at another.
        large = {each.name: (answer, each) for answer, each in zip(answers, wide, strict=True)}
        told[move] = [
            large[own.name][0]._replace(px=shape[2])
            if old.why == BORDER and own.name in large and _tells(own, *large[own.name], times)
            else old
            for old, own in zip(moves[move], found, strict=True)
        ]
    return told


@torch.no_grad()
def larger(model: nn.Module, x_BCHW: Tensor) -> int:
    """How many times as large images it is asked with, too: 1 for none, as where it refuses or they are large."""
    side = max(x_BCHW.shape[2:])
    times = 4 if 2 * side <= LARGE else 2 if side <= LARGE else 1
    try:
        model(x_BCHW[:1].repeat(1, 1, times, times))
    except Exception:  # a module that is bound to its size may raise anything
        return 1
    return times


def _tells(own: Field, answer: Followed, large: Field, times: int) -> bool:
    """Whether a larger image told something of this very unit, which then has so many times as many places."""
    grown = own.grid is not None and large.grid == (times * own.grid[0], times * own.grid[1])
    return grown and not math.isnan(answer.error)


def _of_shift(
    model: nn.Module, x_BCHW: Tensor, before: Sequence[Unit], found: Sequence[Field], step: int
) -> list[Followed]:
    """Of both axes the worse answer of every unit."""
    both, size = [], (x_BCHW.shape[2], x_BCHW.shape[3])
    for axis in (0, 1):
        after = units(model, x_BCHW.roll(step, 2 + axis))
        both.append([_shifted(*each, step, axis, size) for each in zip(before, after, found, strict=True)])
    return [_worse(*each) for each in zip(*both, strict=True)]


def _permuted(rearranged: Callable, x_BCHW: Tensor, patch: int) -> list[Followed]:
    """Of one random order of the patches; a map follows it only place by place."""
    grid = x_BCHW.shape[2] // patch, x_BCHW.shape[3] // patch
    order = torch.randperm(grid[0] * grid[1], generator=torch.Generator().manual_seed(0))

    def of_map(y_BHWC: Tensor) -> Tensor | None:
        return y_BHWC.flatten(1, 2)[:, order].unflatten(1, grid) if tuple(y_BHWC.shape[1:3]) == grid else None

    return rearranged(permute_patches(x_BCHW, patch, order), of_map)


def _compared(before: Unit, after: Unit, of_map: Callable[[Tensor], Tensor | None]) -> Followed:
    """Of logits, and of maps that have as many places as are moved."""
    if before.name == LOGITS:
        return Followed(LOGITS, *_error(after.output, before.output))
    if before.places is None or (wanted := of_map(before.places)) is None:
        return _untold(before, "no map" if before.places is None else "places of another size are moved")
    return Followed(before.name, *_error(after.places, wanted))


def _shifted(before: Unit, after: Unit, own: Field, step: int, axis: int, size: tuple[int, int]) -> Followed:
    """Of an image rolled by so many pixels along an axis."""
    if before.name == LOGITS:
        return Followed(LOGITS, *_error(after.output, before.output))
    if before.places is None:
        return _untold(before, "no map")
    stride = _stride(own.grid, size)
    if not stride or step % stride:
        return _untold(before, f"its stride of {stride or 'no whole number of'} px is no part of {step} px")
    y, y_shifted, by = before.places, after.places, step // stride
    whole = _error(y_shifted, y.roll(by, 1 + axis))
    if whole[2] or Followed("", *whole).verdict(_dtype(y)) == "exact":
        return Followed(before.name, *whole)
    if not own.box:
        return _untold(before, "it reads nothing")
    first, last = own.box[2 * axis], own.box[2 * axis + 1]
    middle = own.grid[axis] // 2
    # Of a field cut off at a border nobody knows how much.
    whole_field = first > 0 and last < size[axis] - 1
    inside = [
        place
        for place in range(own.grid[axis] - by)
        if first + (place - middle) * stride >= 0 and last + (place - middle) * stride + step <= size[axis] - 1
    ]
    if not whole_field or not inside:
        return _untold(before, BORDER)
    places = torch.tensor(inside)
    return Followed(
        before.name, *_error(y_shifted.index_select(1 + axis, places + by), y.index_select(1 + axis, places))
    )


def _error(a: Tensor, b: Tensor) -> tuple[float, float, str]:
    """|a - b| / |b|, and the same with a of other images; or why these say nothing."""
    scale = b.double().norm().item()
    if not scale or not math.isfinite(scale):
        return math.nan, math.nan, CONSTANT
    error, null = ((each - b).double().norm().item() / scale for each in (a, a.roll(1, 0)))
    return (error, null, "") if null > 100 * ROUNDING[_dtype(b)] else (math.nan, math.nan, CONSTANT)


def _worse(a: Followed, b: Followed) -> Followed:
    """The larger error; of one that says nothing the other."""
    known = [each for each in (a, b) if not math.isnan(each.error)]
    return max(known, key=lambda each: each.error / each.null if each.null else each.error) if known else a


def _untold(unit: Unit, why: str) -> Followed:
    return Followed(unit.name, math.nan, math.nan, why)


def _stride(grid: tuple[int, int] | None, size: tuple[int, ...]) -> int | None:
    """Pixels from place to place; None where that is no whole number."""
    if grid is None:
        return None
    strides = {round(side / places) for side, places in zip(size, grid, strict=True)}
    whole = len(strides) == 1 and all(
        -(-side // min(strides)) == places for side, places in zip(size, grid, strict=True)
    )
    return strides.pop() if whole else None


def _dtype(y: Tensor) -> str:
    return str(y.dtype).removeprefix("torch.")


def _middle(y_BHWC: Tensor) -> Tensor:
    return y_BHWC[:, y_BHWC.shape[1] // 2, y_BHWC.shape[2] // 2]


def timed(model: nn.Module, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Seconds of one image through the module in a batch of 16, and about how long `measure` takes."""
    x_BCHW = torch.randn(16 if max(shape[1:]) <= LARGE else 2, *shape)
    model = copy.deepcopy(model).cpu().eval()
    with torch.inference_mode():
        model(x_BCHW)
        began = time.monotonic()
        model(x_BCHW)
    one = (time.monotonic() - began) / len(x_BCHW)
    count = IMAGES if max(shape[1:]) <= LARGE else 2
    own, times = 2 * count * one * (MOST + 14), larger(model, x_BCHW)  # twice as long in float64
    return one, 2 + own + (4 * times**2 * one * MOST if times > 1 else 0)
