"""How alike two sets of features of the same images are: CKA, and shared nearest neighbours."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = 10


def hsic(k_BB: Tensor, l_BB: Tensor) -> float:
    """The unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012, equation 5)."""
    count = len(k_BB)
    k, l = (each - each.diag().diag() for each in (k_BB, l_BB))  # noqa: E741 - the paper's letters
    traces = (k * l).sum() + k.sum() * l.sum() / ((count - 1) * (count - 2))
    return ((traces - 2 / (count - 2) * (k.sum(0) @ l.sum(0))) / (count * (count - 3))).item()


def products(layers: Sequence[Tensor]) -> np.ndarray:
    """HSIC of every pair of layers, each the features (B, ...) of one batch of images, linear kernels: (L, L).

    Its mean over batches is what `cka` takes, as the estimator is unbiased for any batch (Nguyen et al.,
    arXiv 2010.15327).
    """
    grams = [x @ x.T for x in (each.flatten(1).double().cpu() for each in layers)]
    return np.array([[hsic(a, b) for b in grams] for a in grams])


def cka(hsic_FF: np.ndarray) -> np.ndarray:
    """Centred kernel alignment from (means over batches of) HSIC, (..., F, F); NaN where a layer is constant."""
    own = np.diagonal(hsic_FF, axis1=-2, axis2=-1)
    own = np.sqrt(np.where(own > 0, own, np.nan))
    return hsic_FF / (own[..., :, None] * own[..., None, :])


def shared_neighbours(first_ND: Tensor, second_ND: Tensor, k: int = NEIGHBOURS) -> np.ndarray:
    """Of each image (N,), which share of its k nearest by cosine in one space are so in the other, in percent."""
    near = []
    for each in (first_ND, second_ND):
        x = torch.nn.functional.normalize(each.flatten(1).double() - each.flatten(1).double().mean(0))
        near.append((x @ x.T).fill_diagonal_(-2).topk(k).indices)
    return 100 * (near[0][:, :, None] == near[1][:, None]).any(2).double().mean(1).numpy()
