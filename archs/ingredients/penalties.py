"""Penalties that pull dense weights towards a convolution: pure functions of a weight and a geometry.

    lasso      sum |w|, and `threshold_`: beta-lasso (Neyshabur, arXiv 2007.13657, algorithm 1), which knows no places
    distance   sum w^2 |x - c|^2, x an input's place and c its unit's: a ridge that grows with the distance
    toeplitz   |V - P_T M_k V|^2, to the nearest convolution (archs/ingredients/lift.py)
    mask       |(1 - M_k) V|^2, what is outside the window

Weights are (A, P, B * Q) or (A * P, B * Q), as there. The distance to a projection as a penalty on symmetry is
arXiv 2601.05028's.
"""

import torch
from torch import Tensor

from archs.ingredients.lift import Geometry, nearest


def lasso(weight: Tensor) -> Tensor:
    """sum |w|; its gradient is sign(w), 0 where w is 0."""
    return weight.abs().sum()


@torch.no_grad()
def threshold_(weight: Tensor, bound: float) -> Tensor:
    """Zero, in place, what is nearer to 0 than `bound`: beta-lasso's beta * lambda, after each step."""
    return weight.masked_fill_(weight.abs() < bound, 0.0)


def distance(weight: Tensor, geometry: Geometry, placed: bool = True) -> Tensor:
    """sum w^2 |x - c|^2, in places of the inputs' grid.

    Args:
        placed: c is where the unit stands, the middle of its stride; else a unit stands nowhere, and c is free. The
            best c is then the centroid of w^2, and the gradient is that for a fixed c, as that of c is 0 there.
    """
    rows, columns = (torch.arange(side, dtype=weight.dtype, device=weight.device) for side in geometry.grid)
    places_Q2 = torch.cartesian_prod(rows, columns).reshape(-1, 2)
    if placed:
        mass_UQ = geometry.view(weight).square().sum(2).flatten(0, 1)
        at = places_Q2.unflatten(0, geometry.grid)[:: geometry.stride, :: geometry.stride].flatten(0, 1)
        at_U2 = (at + (geometry.stride - 1) / 2).repeat(len(mass_UQ) // len(at), 1)
    else:
        mass_UQ = weight.reshape(-1, geometry.in_chans, geometry.in_places).square().sum(1)
        still = mass_UQ.detach()
        at_U2 = still @ places_Q2 / still.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    apart = (places_Q2[None] - at_U2[:, None]).square().sum(2)
    return (mass_UQ * apart).sum()


def toeplitz(weight: Tensor, geometry: Geometry, kernel_size: int | None = None) -> Tensor:
    """|V - P_T M_k V|^2; None: any displacement is in the window, so that only sharing is asked for."""
    return (weight - nearest(weight, geometry, kernel_size)).square().sum()


def mask(weight: Tensor, geometry: Geometry, kernel_size: int) -> Tensor:
    """|(1 - M_k) V|^2: only locality is asked for."""
    outside = ~geometry.inside(kernel_size, weight.device)
    return (geometry.view(weight).square() * outside[:, None]).sum()
