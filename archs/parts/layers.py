"""Layers that two or more families mean to share because their papers mean the same operation."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from archs.parts.backbone import Grid, pair


class Patchify(nn.Module):
    """Shared linear projection of non-overlapping patches, BCHW -> BHWC.

    The pixels of a patch are read in the order (channel, row, column), so `proj.weight` is a convolution's weight
    (dim, in_chans, p, q) flattened, and a patch as large as the image is the flattening first layer of a plain MLP.
    """

    def __init__(self, patch_size: int | Grid, dim: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patch_size = pair(patch_size)
        self.proj = nn.Linear(in_chans * self.patch_size[0] * self.patch_size[1], dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(patches(x_BCHW, self.patch_size))


def patches(x_BCHW: Tensor, patch_size: Grid) -> Tensor:
    """Non-overlapping patches, BHWC with C = (channel, row, column). einops cannot be traced by torch.fx."""
    p, q = patch_size
    return x_BCHW.unflatten(3, (-1, q)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3)


class TokenLinear(nn.Linear):
    """`nn.Linear` over the last axis but one: x_BNC -> x_BMC, channel by channel.

    W @ x leaves the tokens where they are. With `nn.Linear` between two transposes instead, a gMLP takes 1.05 to 1.3
    times as long on a CPU, the most in bfloat16, a Mixer or ResMLP up to 1.06 times. `torch.matmul` transposes inside
    and gains nothing; `torch.baddbmm` is as fast, but fvcore cannot count it.
    """

    def forward(self, x_BNC: Tensor) -> Tensor:
        return mix_tokens(x_BNC, self.weight, self.bias)


def mix_tokens(x_BNC: Tensor, weight_MN: Tensor, bias: Tensor | None) -> Tensor:
    """weight @ x + bias, channel by channel: x_BNC -> x_BMC; `bias` has one number per token, or one for all."""
    y_BMC = torch.bmm(_as_multiplied(weight_MN).expand(x_BNC.shape[0], -1, -1), x_BNC)
    # Under autocast the product is bfloat16, and a float32 bias would turn it back.
    return y_BMC if bias is None else y_BMC + bias[:, None].to(y_BMC.dtype)


@torch.fx.wrap  # a leaf: a graph holds no condition
def _as_multiplied(weight: Tensor) -> Tensor:
    """What autocast would make of the weight before a product; cast where it stands once, not once for each image."""
    device = weight.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return weight
    return weight if weight.dtype == torch.float64 else weight.to(torch.get_autocast_dtype(device))


class Mlp(nn.Module):
    """Linear -> GELU (erf) -> Linear, back to `dim`, over the last axis or over the one that `linear` works on."""

    def __init__(self, dim: int, hidden: int, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.fc1 = linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class OverTokens(nn.Module):
    """Apply `mix` across the tokens of x_BHWC, channel by channel.

    Args:
        mix: a module over a last axis of length N = H*W.
        transpose: off if `mix` takes x_BNC instead, as one made of TokenLinear does, and need not be given x_BCN.
    """

    def __init__(self, mix: nn.Module, transpose: bool = True) -> None:
        super().__init__()
        self.mix = mix
        self.transpose = transpose

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BNC = x_BHWC.flatten(1, 2)
        mixed = self.mix(x_BNC.transpose(1, 2)).transpose(1, 2) if self.transpose else self.mix(x_BNC)
        return mixed.reshape(x_BHWC.shape)


class Reweight(nn.Module):
    """Sum of three maps, each weighted per channel by a softmax over the three of an MLP of their spatial mean.

    Of the Vision Permutator, and of CycleMLP after it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 4)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim // 4, 3 * dim)

    def forward(self, first_BHWC: Tensor, second_BHWC: Tensor, third_BHWC: Tensor) -> Tensor:
        mean_BC = (first_BHWC + second_BHWC + third_BHWC).mean((1, 2))
        # Output channel * 3 + branch, not branch * dim + channel.
        weights_BC3 = self.fc2(self.act(self.fc1(mean_BC))).unflatten(-1, (-1, 3)).softmax(-1)
        first, second, third = weights_BC3.to(first_BHWC.dtype)[:, None, None].unbind(-1)
        return first * first_BHWC + second * second_BHWC + third * third_BHWC


class OverMap(nn.Module):
    """Apply `layer`, a module x_BCHW -> x_BCHW such as a convolution or BatchNorm2d, to x_BHWC.

    The permuted tensor is already in PyTorch's channels_last layout, which those layers keep: nothing is copied.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.layer(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Residual(nn.Module):
    """x + drop_path(scale(branch(norm(x)))), in the dtype of x.

    Under autocast x is float32 and the branch may be bfloat16; the sum then casts the branch, and not x.
    """

    def __init__(
        self, norm: nn.Module, branch: nn.Module, drop_path: float = 0.0, scale: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.branch = branch
        self.scale = scale if scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale(self.branch(self.norm(x))))
