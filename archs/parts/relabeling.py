"""Relabelings of an image's pixels, and how a family's weights follow them.

A relabeling is one fixed linear map of the numbers of an image, mostly a new order. A family that is blind to it says
so in `relabel(state_dict, relabeling)`: weights with which the model does to every relabeled image what it did to the
image, in training too. Where it knows none, `relabel` returns None. `analysis/bias/symmetry.py` trains both and
compares.

The helpers here turn a None that they are given into None, so that a family's rule reads as one expression.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from einops import rearrange
from torch import Tensor

from archs.parts.backbone import Grid, grid_of, pair
from archs.parts.family import FamilyError
from archs.parts.weights import State


@dataclass(frozen=True, kw_only=True)
class Relabeling:
    """x' = `flat` applied to the pixels of x, read as (channel, row, column).

    Args:
        flat: the order, number i of x' being number flat[i] of x; or an orthogonal matrix.
        grid, patch_size: the patches that `tokens` and `within` speak of.
        tokens: patch i of x' is patch tokens[i] of x, in the order of `within`; None if patches are torn apart.
        within: entry k of a patch of x', read as (channel, row, column), is entry within[k] of its patch of x; one
            order per patch of x' where it has two axes; None if patches are torn apart.
    """

    flat: Tensor
    grid: Grid
    patch_size: Grid
    tokens: Tensor | None = None
    within: Tensor | None = None

    @classmethod
    def of_patches(
        cls, image: Sequence[int], patch_size: int | Grid, tokens: Tensor | None = None, within: Tensor | None = None
    ) -> "Relabeling":
        """From its two parts for images of shape (C, H, W); None is the order as it is."""
        grid, (p, q) = grid_of(tuple(image[1:]), patch_size), pair(patch_size)
        entries = rearrange(torch.arange(math.prod(image)).reshape(*image), "c (h p) (w q) -> (h w) (c p q)", p=p, q=q)
        tokens = torch.arange(len(entries)) if tokens is None else tokens
        within = torch.arange(entries.shape[1]) if within is None else within
        moved = entries[tokens].gather(1, within.expand_as(entries))
        flat = rearrange(moved, "(h w) (c p q) -> (c h p w q)", h=grid[0], p=p, q=q)
        return cls(flat=flat, grid=grid, patch_size=(p, q), tokens=tokens, within=within)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The relabeled images."""
        return self.follow(x_BCHW.flatten(1)).reshape(x_BCHW.shape)

    def follow(self, numbers: Tensor) -> Tensor:
        """The last axis, all pixels of an image or one weight for each, relabeled."""
        return numbers @ self.flat.T.to(numbers.dtype) if self.flat.ndim == 2 else numbers[..., self.flat]

    @property
    def shared(self) -> bool:
        """Whether all patches stay whole and have one inner order."""
        return self.within is not None and self.within.ndim == 1

    @property
    def lines(self) -> tuple[Tensor, Tensor] | None:
        """Orders of the grid's rows and columns, if `tokens` is made of two such."""
        if self.tokens is None:
            return None
        places = self.tokens.reshape(self.grid)
        rows, columns = places[:, 0] // self.grid[1], places[0] % self.grid[1]
        return (rows, columns) if torch.equal(places, rows[:, None] * self.grid[1] + columns) else None

    @property
    def turns(self) -> tuple[int, int] | None:
        """1 or -1 for rows and columns, if they follow each other forwards or backwards around a circle."""
        if self.lines is None:
            return None
        rows, columns = (_turn(line) for line in self.lines)
        return None if rows is None or columns is None else (rows, columns)

    @property
    def mirrored(self) -> tuple[bool, bool] | None:
        """Whether rows and columns stand in reverse, if all stand in order or in reverse."""
        if self.lines is None:
            return None
        rows, columns = (_is_mirrored(line) for line in self.lines)
        return None if rows is None or columns is None else (rows, columns)

    def inside(self) -> "Relabeling | None":
        """The part that leaves every patch where it is, if it is the same in all."""
        if not self.shared:
            return None
        in_chans = len(self.within) // math.prod(self.patch_size)
        sides = (number * size for number, size in zip(self.grid, self.patch_size, strict=True))
        return self.of_patches((in_chans, *sides), self.patch_size, within=self.within)


def on_stem(state: State, relabeling: Relabeling, key: str = "stem.proj.weight") -> State | None:
    """A shared patch projection reads each patch in its new order; None unless all patches have the same."""
    return along(state, relabeling.within, {key: (1,)}) if relabeling.shared else None


def along(state: State | None, order: Tensor | None, axes: Mapping[str, Sequence[int]]) -> State | None:
    """Weights whose key matches a pattern of `axes`, in a new order along those of their axes.

    Raises FamilyError for a pattern that matches no key, or an axis that is not there or not as long as the order.
    """
    if state is None or order is None:
        return None

    def change(value: Tensor, axis: int) -> Tensor:
        if value.shape[axis] != len(order):
            raise IndexError(f"the new order has {len(order)} entries")
        return value.index_select(axis, order)

    return _changed(state, axes, change)


def mirror(state: State | None, relabeling: Relabeling, axes: Mapping[str, Sequence[int]]) -> State | None:
    """Weights whose key matches are reversed as the grid is; `axes` names their rows' and columns' axis.

    Raises FamilyError for a pattern that matches no key, or an axis that is not there.
    """
    if state is None or (mirrored := relabeling.mirrored) is None:
        return None
    backwards = {key: [axis for axis, on in zip(both, mirrored, strict=True) if on] for key, both in axes.items()}
    return _changed(state, backwards, lambda value, axis: value.flip(axis))


def _changed(state: State, axes: Mapping[str, Sequence[int]], change: Callable[[Tensor, int], Tensor]) -> State:
    """What is addressed must be there: a key that a variant lacks is left out by the family, not passed over here."""
    changed = dict(state)
    for pattern, each in axes.items():
        matching = [key for key in state if fnmatch(key, pattern)]
        if not matching:
            near = difflib.get_close_matches(pattern, state, n=3, cutoff=0.0)
            raise FamilyError(f"relabel addresses '{pattern}', and no weight is called so; near: {', '.join(near)}")
        for key, axis in itertools.product(matching, each):
            try:
                changed[key] = change(changed[key], axis)
            except IndexError as error:
                shape = tuple(changed[key].shape)
                said = f"relabel cannot change axis {axis} of '{pattern}': {key} has the shape {shape}, {error}"
                raise FamilyError(said) from None
    return changed


def _turn(line: Tensor) -> int | None:
    """1 or -1 if each number is that far from the one before it, modulo their count."""
    return next((turn for turn in (1, -1) if ((line.roll(-1) - line - turn) % len(line) == 0).all()), None)


def _is_mirrored(line: Tensor) -> bool | None:
    """False for 0, 1, 2, ..., True for its reverse, else None."""
    ordered = torch.arange(len(line))
    return next((back for back in (False, True) if torch.equal(line.flip(0) if back else line, ordered)), None)
