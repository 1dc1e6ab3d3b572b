"""Symmetry signature: which relabelings of the pixels leave a model's learning problem, under an optimizer, the same?

Two copies are trained in float64 on the same random images and labels: one as it is, one on relabeled images with its
weights moved to where the relabeling puts them, as the family's `relabel` says. Either their losses coincide to
rounding over the whole run or they do not; there is nothing to estimate. Where a family knows no map, the best part of
it is used: the stem's where the inner order of all patches is the same, otherwise none. So a pass is a proof by
example, and a fail says that no map is known, not that there is none.

The weights are drawn at random, so that nothing is symmetric by starting at zero. For a pass to mean that training is
blind to the relabeling, the initialisation must be as likely before as after it: numbers that are drawn alike are, for
a new order; for a rotation only normal ones.

A family declares SYMMETRY, the groups it claims (those inside them are claimed with them), and `relabel`, which must
know a map for each. The optimizer decides, too: a rotation of the pixels survives SGD, and Muon, whose step is the
orthogonal factor of the gradient as a matrix (Jordan et al. 2024), and no method that looks at single weights. Muon
reads a tensor of more axes as the matrix of its first axis by all others, so it is not blind to orders of the patches
that mix these two, which a stem with weights of its own for each patch needs.
"""

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import archs
from archs.parts.family import FamilyError, read
from engine.errors import DIVERGED, Refusal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from archs.parts.relabeling import Relabeling

GROUPS = {
    "pixels": "any order of the pixels",
    "patches_own": "any order of the patches, and of the pixels inside each",
    "patches": "any order of the patches, and one of the pixels inside all",
    "rows_columns": "any order of the rows and of the columns of patches, and one of the pixels inside all",
    "within": "one order of the pixels inside all patches",
    "shift": "patches shifted around the border",
    "flip": "the image mirrored, left to right",
    "rotation": "one orthogonal map of all pixels",
}
# Who claims a group claims these, too.
INSIDE = {
    "pixels": ("patches_own",),
    "patches_own": ("patches",),
    "patches": ("rows_columns",),
    "rows_columns": ("within", "shift", "flip"),
}
OPTIMIZERS = ("adamw", "sgd")
# Those whose step commutes with a rotation: linear in the gradients, or their orthogonal factor.
ROTATED = ("sgd", "momentum", "muon")
PASS, FAIL = 1e-10, 1e-4
STEPS, BATCH, LR = 15, 16, 1e-3


def signature(name: str, opt: str = "adamw", *, seed: int = 0, **overrides: Any) -> dict[str, float]:
    """Group -> gap, the largest difference between the two losses, before each step and after the last.

    Args:
        name: `family_variant`, with three channels unless `overrides`, arguments of `archs.create`, say otherwise.
        opt: an optimizer of `engine.run.Run`.
        seed: of the weights, the data and the relabelings.

    Raises Refusal for a model of timm, whose weights no rule here moves, and for a run that diverges.
    """
    import torch

    from analysis.probes.receptive_field import randomise

    shape, patch_size, own = setting(name, overrides)

    def fresh() -> "nn.Module":
        with torch.random.fork_rng(
            devices=[]
        ):  # what is drawn and no number to randomise, such as an order, is the same
            torch.manual_seed(seed)
            return randomise(archs.create(name, **own), seed).double()

    generator = torch.Generator().manual_seed(seed)
    batches, threads = [], torch.get_num_threads()
    for _ in range(STEPS + 1):
        x_BCHW = torch.randn(BATCH, *shape, dtype=torch.float64, generator=generator)
        batches.append((x_BCHW, torch.randint(own["num_classes"], (BATCH,), generator=generator)))
    try:
        # So small that threads would wait for one another, on a busy machine a hundred times as long as they compute.
        torch.set_num_threads(1)
        straight, gaps = _losses(fresh(), batches, opt), {}
        for group in GROUPS:
            relabeling, model = draw(group, shape, patch_size, seed), fresh()
            model.load_state_dict(_best_map(name, model.state_dict(), relabeling, own))
            moved = _losses(model, [(relabeling(x_BCHW), y_B) for x_BCHW, y_B in batches], opt)
            gaps[group] = max(abs(a - b) for a, b in zip(straight, moved, strict=True))
            if not math.isfinite(sum(straight) + sum(moved)):
                raise Refusal(f"{name} diverges under {opt} at lr {LR:g}: its losses cannot be compared", DIVERGED)
    finally:
        torch.set_num_threads(threads)
    return gaps


def table(names: Sequence[str], opts: Sequence[str] = OPTIMIZERS, **given: Any) -> list[dict[str, Any]]:
    """One row per model and optimizer: its gaps by group, and `log10_size` of what passes; `given` as for signature."""
    rows = []
    for name in names:
        shape, patch_size, _ = setting(name, {key: value for key, value in given.items() if key != "seed"})
        for opt in opts:
            gaps = signature(name, opt, **given)
            passing = [group for group, gap in gaps.items() if verdict(gap) == "pass"]
            row = {"model": name, "opt": opt, "in_chans": shape[0], "img_size": shape[1], "patch_size": patch_size}
            # Digits beyond the first are rounding's and differ from machine to machine.
            rows.append(
                {
                    **row,
                    **{group: float(f"{gap:.0e}") for group, gap in gaps.items()},
                    "log10_size": round(log10_size(passing, shape, patch_size), 2),
                }
            )
    return rows


def verdict(gap: float) -> str:
    """ "pass" to rounding, "fail" clearly, or "undetermined"."""
    return "pass" if gap < PASS else "fail" if gap > FAIL else "undetermined"


def declared(name: str, **overrides: Any) -> set[str]:
    """Groups that the family claims for this variant, or for the mixer that it is given; with all inside them.

    Without torch.
    """
    family = name.partition("_")[0]
    if family not in archs.families():
        raise Refusal(f"'{name}' is not of this zoo, so nothing says how its weights follow a relabeling")
    claimed = list(archs.symmetry(name, **overrides))
    if unknown := [group for group in claimed if group not in GROUPS]:
        raise FamilyError(f"archs/{family}.py claims the symmetry {unknown[0]!r}; groups: {', '.join(GROUPS)}")
    for group in claimed:  # grows while it is read
        claimed += INSIDE.get(group, ())
    return set(claimed)


def expected(name: str, opt: str, **overrides: Any) -> set[str]:
    """What must pass: the claims, without the rotation where the optimizer looks at single weights, and under Muon
    without orders of patches that have weights of their own."""
    lost = set() if opt in ROTATED else {"rotation"}
    family, _, variant = name.partition("_")
    if opt == "muon" and read(family).bias(variant).stem == "local":
        lost |= {"patches_own", "patches"}
    return declared(name, **overrides) - lost


def log10_size(passing: Sequence[str], shape: tuple[int, int, int], patch_size: int) -> float:
    """log10 of how many relabelings the permutation groups among `passing` make together; 0 for the identity alone."""
    entries, rows, columns = shape[0] * patch_size**2, shape[1] // patch_size, shape[2] // patch_size
    tokens = rows * columns
    if "pixels" in passing:
        return _log10_factorial(entries * tokens)
    if "patches_own" in passing:
        return tokens * _log10_factorial(entries) + _log10_factorial(tokens)
    inner = _log10_factorial(entries) if "within" in passing else 0.0
    if "patches" in passing:
        return inner + _log10_factorial(tokens)
    if "rows_columns" in passing:
        return inner + _log10_factorial(rows) + _log10_factorial(columns)
    return inner + math.log10((tokens if "shift" in passing else 1) * (2 if "flip" in passing else 1))


def draw(group: str, shape: tuple[int, int, int], patch_size: int, seed: int = 0) -> "Relabeling":
    """A random member of the group for images of shape (C, H, W); not the identity unless the group is trivial."""
    import torch

    from archs.parts.relabeling import Relabeling

    generator = torch.Generator().manual_seed(seed)
    grid, entries = (shape[1] // patch_size, shape[2] // patch_size), shape[0] * patch_size**2

    def order(length: int) -> "Tensor":
        return torch.randperm(length, generator=generator)

    def of_patches(**parts: "Tensor") -> Relabeling:
        return Relabeling.of_patches(shape, patch_size, **parts)

    def of_lines(rows: "Tensor", columns: "Tensor", **parts: "Tensor") -> Relabeling:
        return of_patches(tokens=(rows[:, None] * grid[1] + columns).flatten(), **parts)

    tokens, pixels = grid[0] * grid[1], math.prod(shape)
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    if group == "pixels":
        return Relabeling(flat=order(pixels), grid=grid, patch_size=(patch_size, patch_size))
    if group == "patches_own":
        return of_patches(tokens=order(tokens), within=torch.stack([order(entries) for _ in range(tokens)]))
    if group == "patches":
        return of_patches(tokens=order(tokens), within=order(entries))
    if group == "rows_columns":
        return of_lines(order(grid[0]), order(grid[1]), within=order(entries))
    if group == "within":
        return of_patches(within=order(entries))
    if group == "shift":
        return of_lines(rows.roll(1), columns.roll(1))
    if group == "flip":
        mirrored = torch.arange(entries).reshape(shape[0], patch_size, patch_size).flip(2).flatten()
        return of_lines(rows, columns.flip(0), within=mirrored)
    if group == "rotation":
        square = torch.randn(pixels, pixels, dtype=torch.float64, generator=generator)
        return Relabeling(flat=torch.linalg.qr(square).Q, grid=grid, patch_size=(patch_size, patch_size))
    raise ValueError(f"group '{group}' is unknown; known: {', '.join(GROUPS)}")


def setting(name: str, overrides: dict[str, Any]) -> tuple[tuple[int, int, int], int, dict[str, Any]]:
    """Shape (C, H, W) of the images, side of the patches, and all arguments of `archs.create`.

    A model on raw pixels is asked about quarters of its image's side.
    """
    declared(name)
    own = archs.arguments(name, **{"in_chans": 3, **overrides})
    size = own["img_size"]
    return (own["in_chans"], size, size), own.get("patch_size", size // 4), own


def family_map(name: str, own: dict[str, Any]) -> "Callable[[dict[str, Tensor], Relabeling], dict[str, Tensor] | None]":
    """`relabel` of the family; `own` as `setting` gives it, for a family whose mixer is an argument."""
    family = name.partition("_")[0]
    relabel = importlib.import_module(f"archs.{family}").relabel
    return functools.partial(relabel, given=own) if "MIXER" in read(family).tables else relabel


def _best_map(
    name: str, state: dict[str, "Tensor"], relabeling: "Relabeling", own: dict[str, Any]
) -> dict[str, "Tensor"]:
    """The family's map, or its part inside the patches, or the weights as they are."""
    family, inside, relabel = name.partition("_")[0], relabeling.inside(), family_map(name, own)
    try:
        for each in (relabeling, inside):
            if each is not None and (moved := relabel(state, each)) is not None:
                return moved
    except FamilyError as error:
        raise FamilyError(f"archs/{family}.py: {error}") from None
    return state


def _losses(model: "nn.Module", batches: Sequence[tuple["Tensor", "Tensor"]], opt: str) -> list[float]:
    """Cross-entropy on each batch, with a step of the optimizer after all but the last.

    Muon orthogonalises in bfloat16; here it does so in float64, as all else, or nothing would coincide to rounding.
    """
    import torch
    from timm.optim import muon
    from torch.nn.functional import cross_entropy

    from engine.optim import make_optimizer
    from engine.run import Run

    optimizer, losses = make_optimizer(Run(opt=opt, lr=LR, weight_decay=0.05), model.train()), []
    exact = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float64)
    with mock.patch.object(muon, "zeropower_via_newtonschulz", exact):
        for x_BCHW, y_B in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(x_BCHW), y_B)
            losses.append(loss.item())
            if len(losses) < len(batches):
                loss.backward()
                optimizer.step()
    return losses


def _log10_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(10)
