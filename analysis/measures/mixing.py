"""The matrix over the tokens that each token mixer of a model applies: entry (i, j) is what token i reads of token j.

A mixer that is linear is asked with one token at a time; one with a gate for the linear map inside it. Of an MLP over
the tokens it is the mean Jacobian W2 diag(E gelu'(W1 x)) W1 over images and channels, of attention the mean attention
matrix of each head over images, without the class token. Of the Vision Permutator it is what rows read of rows, a
matrix for each pair of channels of a segment, and columns of columns. Letters as in archs/parts/backbone.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from archs import cyclemlp, deit, gfnet, poolformer, randformer, s2mlp, vip
from archs.ingredients.mixer import MatrixMixer, Mixer
from archs.kernels.depthwise import DepthwiseConv2d
from archs.mixing import attention, token_mlp
from archs.parts.backbone import Backbone, Grid
from archs.parts.layers import Mlp, OverTokens


class Mixing(NamedTuple):
    """What one module does: matrices (K, N, N) in float64, one for each of K kinds of channels, on a grid."""

    matrices: Tensor
    grid: Grid


@torch.no_grad()
def matrices(model: nn.Module, x_BCHW: Tensor) -> dict[str, Mixing]:
    """By the name of each module that mixes tokens, in order; {} for a model that is none of ours.

    Args:
        x_BCHW: images as the model itself reads them.
    """
    if not isinstance(model, Backbone):
        return {}
    taken = {name: module for name, module in model.named_modules() if isinstance(module, tuple(READERS))}
    outer = {name: module for name, module in taken.items() if not any(name.startswith(f"{each}.") for each in taken)}
    given: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[0]}))
        for name, module in outer.items()
    ]
    try:
        model(x_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, module in outer.items():
        reader = next(reader for kind, reader in READERS.items() if isinstance(module, kind))
        for part, mixing in reader(module, given[name], model.grid(x_BCHW)).items():
            found[f"{name}{part}"] = mixing._replace(matrices=mixing.matrices.double().cpu())
    return found


def in_other_order(mixing: Mixing, tokens: Tensor) -> Mixing:
    """As for tokens of which number i stands in place tokens[i]."""
    back = tokens.argsort()
    return mixing._replace(matrices=mixing.matrices[:, back][:, :, back])


def one_at_a_time(f: Callable[[Tensor], Tensor], grid: Grid, chans: int, like: Tensor) -> Tensor:
    """The matrix of each channel, (C, N, N), of a map x_BHWC -> y_BHWC that is affine in each channel by itself.

    One matrix, where all channels have the same.
    """
    each = torch.eye(grid[0] * grid[1], dtype=like.dtype, device=like.device)
    x_BHWC = each[..., None].expand(-1, -1, chans).unflatten(1, grid)
    # Image j is the token j alone, so y[j, i, c] is entry (i, j).
    y_CNN = (f(x_BHWC) - f(torch.zeros_like(x_BHWC[:1]))).flatten(1, 2).permute(2, 1, 0)
    return y_CNN[:1] if (y_CNN == y_CNN[:1]).all() else y_CNN


def attention_of(q_BHNC: Tensor, k_BHNC: Tensor, more: Tensor | float = 0.0) -> Tensor:
    """Mean over images of the attention matrix of each head, (heads, N, N)."""
    return ((q_BHNC * q_BHNC.shape[-1] ** -0.5) @ k_BHNC.transpose(2, 3) + more).softmax(-1).mean(0)


def jacobian_of(fc1: Tensor, fc2: Tensor, before_BMC: Tensor) -> Tensor:
    """(1, N, N): W2 diag(E gelu'(z)) W1, the mean over images and channels of what stands before the activation."""
    normal = torch.distributions.Normal(0.0, 1.0)
    slope = normal.cdf(before_BMC) + before_BMC * normal.log_prob(before_BMC).exp()
    return (fc2 * slope.mean((0, 2)) @ fc1)[None]


def _over_map(module: nn.Module, x_BHWC: Tensor, grid: Grid) -> dict[str, Mixing]:
    own = tuple(x_BHWC.shape[1:3])
    return {"": Mixing(one_at_a_time(module, own, x_BHWC.shape[3], x_BHWC), own)}


def _over_image(module: nn.Module, x_BCHW: Tensor, grid: Grid) -> dict[str, Mixing]:
    own = tuple(x_BCHW.shape[2:])
    turned = one_at_a_time(lambda x: module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), own, x_BCHW.shape[1], x_BCHW)
    return {"": Mixing(turned, own)}


def _over_tokens(module: OverTokens, x_BHWC: Tensor, grid: Grid) -> dict[str, Mixing]:
    if not isinstance(mlp := module.mix, Mlp):
        return _over_map(module, x_BHWC, grid)
    before_BMC = mlp.fc1(x_BHWC.flatten(1, 2))
    return {"": Mixing(jacobian_of(mlp.fc1.weight, mlp.fc2.weight, before_BMC), tuple(x_BHWC.shape[1:3]))}


def _of_lattice(mixer: Mixer, x_BHWC: Tensor, grid: Grid) -> dict[str, Mixing]:
    """In the order of the image, also where the mixer's tokens are scrambled."""
    order, x_BNC = mixer.order, x_BHWC.flatten(1, 2)
    x_BNC = x_BNC if order is None else x_BNC[:, order]
    if isinstance(mixer, attention.Mixing):
        q, k = (each(x_BNC).unflatten(2, (mixer.num_heads, -1)).transpose(1, 2) for each in (mixer.q, mixer.k))
        found = attention_of(q, k, mixer.logits())
    elif isinstance(mixer, token_mlp.Mixing):
        fc1 = mixer.value("fc1")
        found = jacobian_of(fc1, mixer.value("fc2"), fc1 @ x_BNC)
    elif isinstance(mixer, MatrixMixer):
        found = mixer.matrices()
    else:
        found = one_at_a_time(mixer.linear, mixer.grid, mixer.dim, x_BHWC)
    mixing = Mixing(found, mixer.grid)
    return {"": mixing if order is None else in_other_order(mixing, order)}


def _of_vit(module: deit.Attention, x_BNC: Tensor, grid: Grid) -> dict[str, Mixing]:
    first = x_BNC.shape[1] - grid[0] * grid[1]  # a class token or none
    q, k, _ = module.qkv(x_BNC).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return {"": Mixing(attention_of(q, k)[:, first:, first:], grid)}


def _of_permutator(module: vip.PermuteMlp, x_BHWC: Tensor, grid: Grid) -> dict[str, Mixing]:
    found, side = {}, module.segments
    for name, own in (("mlp_h", (side, 1)), ("mlp_w", (1, side))):
        weight = getattr(module, name).weight.unflatten(1, (side, -1)).unflatten(0, (side, -1))
        found[f".{name}"] = Mixing(weight.permute(1, 3, 0, 2).flatten(0, 1), own)
    return found


def _of_cycle(module: cyclemlp.CycleFc, x_BHWC: Tensor, grid: Grid) -> dict[str, Mixing]:
    """Without its map of the channels: nothing of it is learned."""
    twin = cyclemlp.CycleFc(module.in_features, module.axis, module.steps).to(x_BHWC)
    twin.weight.copy_(torch.eye(module.in_features))
    return _over_map(twin, x_BHWC, grid)


# The first that a module is an instance of; where one stands inside another, the outer one.
READERS: dict[type[nn.Module], Callable[[nn.Module, Tensor, Grid], dict[str, Mixing]]] = {
    Mixer: _of_lattice,
    OverTokens: _over_tokens,
    randformer.RandomMixing: _over_map,
    gfnet.GlobalFilter: _over_map,
    s2mlp.SpatialShift: _over_map,
    DepthwiseConv2d: _over_image,
    poolformer.Pooling: _over_image,
    deit.Attention: _of_vit,
    vip.PermuteMlp: _of_permutator,
    cyclemlp.CycleFc: _of_cycle,
}
