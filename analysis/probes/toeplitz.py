"""Toeplitz: how convolutional has the mixing of tokens become, and how local?

For a matrix V over the N tokens of a grid (analysis/measures/mixing.py), P V has in each entry the mean of V over all
pairs of tokens with the same displacement: the nearest convolution with zeros beyond the border. M keeps what is at
most one row and one column away.

    toeplitz   T = |P V|^2 / |V|^2                     null: Tn, the mean of T over all relabelings of the tokens
    geometry   (T - Tn) / (1 - Tn)                     1 for a convolution, 0 for what no relabeling changes: all
                                                       entries equal, the identity, their sum
    z          (T - Tn) / deviation of T over random relabelings
    local      |M V|^2 / |V|^2                         null: its mean over all relabelings
    distance   sqrt(1 - |P M V|^2 / |V|^2), to the nearest 3 x 3 convolution
    commutator of V with a shift by one token, where both meet the grid: |V_shifted - V| / sqrt(2 |V_shifted|^2 +
               2 |V|^2), the mean over two axes; 0 for a convolution, 0.71 for independent entries

T itself is fooled by an average over all tokens, which is the convolution with a constant. `_change` is of V minus V at
the start of training, `_start` of the latter; `_undone` with the patches of a run with --permute patches back in their
places; a number is that of the mixer, without one it is their mean. Where channels have matrices of their own, T is
that of the sums of both energies, over at most 32 of them. A mixer that is made a convolution has 1 throughout; a hard
window raises `local` and lowers T a little, as most displacements are zero: compare with `_start`. Of the Vision
Permutator rows and columns are lines of tokens.

Source: the projector is standard; the relabeling null and the indices are ours. The interval is that of the jackknife
over tokens (Snijders and Borgatti, Connections 22, 1999), of a mean as if mixers were independent. Means over
relabelings are exact for T and local; the rest is from random ones.
Expect: convolutions 1; a dense mixer at its start 0, and after training more, the later the layer the less; 0 on
permuted patches, until undone. Small starting weights leave room for structure, large ones hide it.
Cost: a pass of 256 images, and the relabelings.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.bias.probe import Estimate, Rearranged, Subject
from analysis.measures.fields import jackknife
from analysis.measures.mixing import Mixing, in_other_order, matrices
from analysis.measures.pictures import sheet
from archs.ingredients.lift import Geometry, project, sums
from archs.parts.backbone import Grid

PROTOCOL = {"images": 256, "relabelings": 200, "tokens": 64, "channels": 32, "entries": 524288, "window": 1, "seed": 0}
UNITS = {
    "toeplitz": "ratio", "geometry": "ratio", "local": "ratio", "distance": "ratio", "commutator": "ratio",
    "z": "deviations", "toeplitz_change": "ratio", "geometry_change": "ratio", "local_change": "ratio",
    "distance_change": "ratio", "commutator_change": "ratio", "z_change": "deviations",
    "toeplitz_start": "ratio", "geometry_start": "ratio", "local_start": "ratio", "distance_start": "ratio",
    "commutator_start": "ratio", "z_start": "deviations", "geometry_undone": "ratio",
    "geometry_change_undone": "ratio", "toeplitz_#": "ratio", "geometry_#": "ratio", "local_#": "ratio",
    "distance_#": "ratio", "commutator_#": "ratio", "z_#": "deviations", "toeplitz_change_#": "ratio",
    "geometry_change_#": "ratio", "local_change_#": "ratio", "distance_change_#": "ratio",
    "commutator_change_#": "ratio", "z_change_#": "deviations",
}  # fmt: skip
HEADLINE = ("geometry_start", "geometry", "geometry_change", "local_change", "distance_change", "commutator_change")
TITLE = "Toeplitz: how convolutional token mixing is, and what training added"
WORDS = {"geometry": "convolutional", "geometry_change": "change convolutional", "geometry_start": "at the start"}
COST = (0.1, 5)
OVER_TRAINING = True
NAMES = ("toeplitz", "geometry", "local", "distance", "commutator", "z")


class Places:
    """The displacements between some tokens of a grid.

    Args:
        at_N2: row and column of each token, whole numbers.
    """

    def __init__(self, at_N2: Tensor) -> None:
        self.at, n = at_N2, len(at_N2)
        apart_NN2 = at_N2[None] - at_N2[:, None]
        (h, w) = (int(at_N2[:, axis].max()) + 1 for axis in (0, 1))
        self.kind = (apart_NN2[..., 0] + h - 1) * (2 * w - 1) + apart_NN2[..., 1] + w - 1
        self.near = (apart_NN2.abs() <= PROTOCOL["window"]).all(-1)
        classes = (2 * h - 1) * (2 * w - 1)
        there = torch.full((3 * h, 3 * w), -1)
        there[at_N2[:, 0] + h, at_N2[:, 1] + w] = torch.arange(n)
        beyond = 2 * at_N2[None] - at_N2[:, None]  # [i, j]: as far behind j as j is behind i
        chained = there[beyond[..., 0] + h, beyond[..., 1] + w] >= 0
        self.pairs = torch.bincount(self.kind.flatten(), minlength=classes).double()
        self.chains = torch.bincount(self.kind.flatten(), chained.flatten().double(), classes)
        self.none = (h - 1) * (2 * w - 1) + w - 1  # the displacement of a token to itself
        self.next = [there[at_N2[:, 0] + h + step[0], at_N2[:, 1] + w + step[1]] for step in ((1, 0), (0, 1))]

    @classmethod
    def of(cls, grid: Grid) -> "Places":
        """All tokens of a grid."""
        return cls(torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).reshape(-1, 2))

    def but(self, token: int) -> "Places":
        """All but one of them."""
        return Places(torch.cat([self.at[:token], self.at[token + 1 :]]))


def projected(V_KNN: Tensor, places: Places) -> Tensor:
    """|P V|^2 of each matrix, (K,)."""
    found = sums(V_KNN.flatten(1), places.kind.flatten(), len(places.pairs))
    return (found.square() / places.pairs.clamp(min=1)).sum(1)


def relabeled(V_KNN: Tensor, places: Places) -> Tensor:
    """Mean of |P V|^2 over all relabelings of the tokens, exactly, (K,); of four tokens or more.

    The square of a sum over a displacement has products of the same pair, of pairs that meet in a token (a chain of two
    equal displacements; each of them twice), and of pairs that do not; their means over relabelings are those over all
    such pairs of V.
    """
    n, trace = V_KNN.shape[-1], V_KNN.diagonal(dim1=1, dim2=2).sum(1)
    off = V_KNN * (1 - torch.eye(n, dtype=V_KNN.dtype))
    rows, columns, total = off.sum(2), off.sum(1), off.sum((1, 2))
    square, mutual = off.square().sum((1, 2)), (off * off.transpose(1, 2)).sum((1, 2))
    met = (rows * columns).sum(1) - mutual
    apart = total**2 + square + mutual - rows.square().sum(1) - columns.square().sum(1) - 2 * (met + mutual)
    same_mean, met_mean = square / (n * (n - 1)), met / (n * (n - 1) * (n - 2))
    apart_mean = apart / (n * (n - 1) * (n - 2) * (n - 3))
    kept = places.pairs > 0
    kept[places.none] = False
    pairs, chains = places.pairs[kept], places.chains[kept]
    return (
        trace**2 / n
        + len(pairs) * same_mean
        + (2 * chains / pairs).sum() * met_mean
        + ((pairs**2 - pairs - 2 * chains) / pairs).sum() * apart_mean
    )


def indices(V_KNN: Tensor, places: Places) -> dict[str, float]:
    """toeplitz, its null, geometry, local, its null, distance and commutator of all matrices together."""
    n, energy = V_KNN.shape[-1], V_KNN.square().sum().item()
    T, null = projected(V_KNN, places).sum().item() / energy, relabeled(V_KNN, places).sum().item() / energy
    on = V_KNN.diagonal(dim1=1, dim2=2).square().sum().item() / energy
    near = V_KNN * places.near
    within = (places.near.sum().item() - n) / (n * (n - 1))
    moved, both = 0.0, 0.0
    shifts = []
    for after in places.next:
        here = (after >= 0).nonzero()[:, 0]
        if len(here):
            a, b = V_KNN[:, here][:, :, here], V_KNN[:, after[here]][:, :, after[here]]
            moved, both = (a - b).square().sum().item(), 2 * (a.square() + b.square()).sum().item()
            shifts.append(math.sqrt(moved / both) if both else math.nan)
    return {
        "toeplitz": T,
        "toeplitz_null": null,
        # What no relabeling changes has both at T, and at 1 the ratio is 0 / 0.
        "geometry": (T - null) / (1 - null) if 1 - null > 1e-9 else 0.0,
        "local": near.square().sum().item() / energy,
        "local_null": on + (1 - on) * within,
        "distance": math.sqrt(max(0.0, 1 - projected(near, places).sum().item() / energy)),
        "commutator": float(np.mean(shifts)) if shifts else math.nan,
    }


def estimates(mixing: Mixing) -> dict[str, Estimate]:
    """All of NAMES; {} for matrices that are zero, and for fewer than five tokens."""
    V_KNN, places = _some(mixing.matrices), Places.of(mixing.grid)
    n, generator = V_KNN.shape[-1], torch.Generator().manual_seed(PROTOCOL["seed"])
    if n < 5 or not V_KNN.any():
        return {}
    found = indices(V_KNN, places)
    tokens = torch.randperm(n, generator=generator)[: PROTOCOL["tokens"]].tolist()
    left_out = []
    for token in tokens:
        others = torch.tensor([i for i in range(n) if i != token])
        left_out.append(indices(V_KNN[:, others][:, :, others], places.but(token)))
    errors = {key: jackknife([each[key] for each in left_out], n) for key in found}
    drawn = []
    for _ in range(PROTOCOL["relabelings"]):
        order = torch.randperm(n, generator=generator)
        drawn.append(_by_chance(V_KNN[:, order][:, :, order], places))
    T_R, distance_R, commutator_R = np.array(drawn).T
    nulls = {"toeplitz": found["toeplitz_null"], "geometry": 0.0, "local": found["local_null"]}
    nulls |= {"distance": distance_R.mean(), "commutator": commutator_R.mean()}
    result = {key: _around(key, found[key], errors[key], null) for key, null in nulls.items()}
    # Matrices that no relabeling changes have a deviation of rounding only.
    scale = (1 - found["toeplitz_null"]) / T_R.std() if T_R.std() > 1e-9 else math.nan
    return result | {"z": Estimate(*(scale * number for number in result["geometry"]))}


def measure(subject: Subject) -> dict[str, Estimate]:
    """{} for a model without a mixer of ours."""
    model, places = _inner(subject.model)
    x_BCHW = _images(subject)
    now, result = matrices(model, x_BCHW), {}
    if not now:
        return {}
    before = matrices(_inner(subject.start)[0], x_BCHW) if subject.start is not None else {}
    change = {name: each._replace(matrices=each.matrices - before[name][0]) for name, each in now.items() if before}
    for suffix, mixings in (("", now), ("_change", change), ("_start", before)):
        each = {i: found for i, name in enumerate(now) if name in mixings and (found := estimates(mixings[name]))}
        if suffix != "_start":
            result |= {f"{key}{suffix}_{i}": found[key] for i, found in each.items() for key in NAMES}
        result |= {f"{key}{suffix}": mean([found[key] for found in each.values()]) for key in NAMES if each}
        tokens = _moved(places, next(iter(now.values())).grid, subject.img_size)
        if tokens is not None and suffix != "_start":
            undone = [in_other_order(one, tokens) for one in mixings.values() if one.matrices.shape[-1] == len(tokens)]
            found = [one["geometry"] for one in map(estimates, undone) if one]
            result |= {f"geometry{suffix}_undone": mean(found)} if found else {}
    return result


def mean(parts: list[Estimate]) -> Estimate:
    """The mean, its interval as of independent parts."""
    value, _, _, null = map(float, np.mean(parts, 0))
    below, above = (math.sqrt(sum((part[i] - part.value) ** 2 for part in parts)) / len(parts) for i in (1, 2))
    return Estimate(value, value - below, value + above, null)


def draw(subject: Subject) -> bytes | None:
    """The nearest convolution of what each mixer has learned: a row per mixer, its kernels side by side."""
    model, x_BCHW = _inner(subject.model)[0], _images(subject)
    now = matrices(model, x_BCHW)
    before = matrices(_inner(subject.start)[0], x_BCHW) if subject.start is not None else {}
    rows = []
    for name, (V_KNN, grid) in now.items():
        change = V_KNN - before[name][0] if before else V_KNN
        rows.append(project((change if change.any() else V_KNN)[:16], Geometry(grid=grid))[:, 0].numpy())
    return sheet(rows) if rows else None


def _by_chance(V_KNN: Tensor, places: Places) -> tuple[float, float, float]:
    found = indices(V_KNN, places)
    return found["toeplitz"], found["distance"], found["commutator"]


def _around(key: str, value: float, error: float, null: float) -> Estimate:
    """All but geometry are within 0 and 1, and so are the ends of their intervals."""
    low, high = (-math.inf, math.inf) if key == "geometry" else (0.0, 1.0)
    return Estimate(value, max(low, value - 1.96 * error), min(high, value + 1.96 * error), float(null))


def _some(V_KNN: Tensor) -> Tensor:
    """At most so many of the matrices, evenly spaced, and fewer where they are large."""
    most = min(PROTOCOL["channels"], max(1, PROTOCOL["entries"] // V_KNN.shape[-1] ** 2))
    return V_KNN if len(V_KNN) <= most else V_KNN[torch.linspace(0, len(V_KNN) - 1, most).long()]


def _inner(model: Any) -> tuple[Any, np.ndarray | None]:
    return (model.model, model.places.cpu().numpy()) if isinstance(model, Rearranged) else (model, None)


def _moved(places: np.ndarray | None, grid: Grid, img_size: int) -> Tensor | None:
    """Where the patch comes from that the model has in each place; None unless whole patches were moved."""
    if places is None or img_size % grid[0] or grid[0] != grid[1]:
        return None
    side = img_size // grid[0]
    rows, columns = np.divmod(places.reshape(grid[0], side, grid[0], side), img_size)
    tokens = rows // side * grid[0] + columns // side
    same = tokens.min((1, 3)) == tokens.max((1, 3))
    return torch.from_numpy(tokens[:, 0, :, 0].reshape(-1).astype(np.int64)) if same.all() else None


def _images(subject: Subject) -> Tensor:
    """The first test images, as the network itself reads them."""
    found: list[Tensor] = []
    batches: Iterable[tuple[Tensor, Tensor]] = subject.images
    for x_BCHW, _ in batches:
        found.append(x_BCHW.clone())
        if sum(map(len, found)) >= PROTOCOL["images"]:
            break
    x_BCHW = torch.cat(found)[: PROTOCOL["images"]]
    return subject.model.arrange(x_BCHW) if isinstance(subject.model, Rearranged) else x_BCHW
