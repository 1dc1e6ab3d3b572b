"""Layers that two or more families mean to share because their papers mean the same operation."""

from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from archs.backbone import Grid, pair


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
        p, q = self.patch_size
        return self.proj(rearrange(x_BCHW, "b c (h p) (w q) -> b h w (c p q)", p=p, q=q))


class Mlp(nn.Module):
    """Linear -> GELU (erf) -> Linear over the last axis, back to `dim`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class OverTokens(nn.Module):
    """Apply `mix`, a module over a last axis of length N = H*W, across the tokens of x_BHWC, channel by channel."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCN = x_BHWC.flatten(1, 2).transpose(1, 2)
        return self.mix(x_BCN).transpose(1, 2).reshape(x_BHWC.shape)


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
    """x + drop_path(scale(branch(norm(x))))."""

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
