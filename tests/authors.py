"""Models with the names of their authors' code, as files of published weights have them; what test_convert reads."""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import deform_conv2d


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


def convmixer(dim: int, depth: int, act: type[nn.Module]) -> nn.Sequential:
    def tail() -> tuple[nn.Module, nn.Module]:
        return act(), nn.BatchNorm2d(dim)

    def block() -> nn.Module:
        depthwise = nn.Conv2d(dim, dim, 3, groups=dim, padding="same")
        return nn.Sequential(Residual(nn.Sequential(depthwise, *tail())), nn.Conv2d(dim, dim, 1), *tail())

    blocks = [block() for _ in range(depth)]
    ends = nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(dim, 5)
    return nn.Sequential(nn.Conv2d(3, dim, 2, stride=2), *tail(), *blocks, *ends)


class BottleneckMlp(nn.Module):
    def __init__(self, inputs: int, dim: int, depth: int, expansion: int) -> None:
        super().__init__()
        self.linear_in, self.linear_out = nn.Linear(inputs, dim), nn.Linear(dim, 5)
        self.blocks, self.layernorms = nn.ModuleList(), nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        for _ in range(depth):
            block = nn.Module()
            block.block = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))
            self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_in(x.flatten(1))
        for block, norm in zip(self.blocks, self.layernorms, strict=True):
            x = x + block.block(norm(x))
        return self.linear_out(x)


class StandardMlp(nn.Module):
    def __init__(self, inputs: int, dim: int, depth: int) -> None:
        super().__init__()
        self.linear_in, self.linear_out = nn.Linear(inputs, dim), nn.Linear(dim, 5)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth - 1))
        self.layernorms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear_in(x.flatten(1))
        for layer, norm in zip(self.layers, self.layernorms, strict=True):
            z = layer(F.gelu(norm(z)))
        return self.linear_out(z)


class StackMlp(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers = [each for a, b in pairwise(widths) for each in (nn.Linear(a, b), nn.ReLU())]
        self.linear_relu_stack = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_relu_stack(x.flatten(1))


class SharedNormMlp(nn.Module):
    """Six or twelve layers with one BatchNorm per width, under the names given; `skips` are counted from 1."""

    def __init__(self, inputs: int, widths: list[int], norms: dict[int, str], skips: tuple[int, ...]) -> None:
        super().__init__()
        self.depth, self.skips, self.norms = len(widths), skips, norms
        for k, (a, b) in enumerate(zip([inputs, *widths[:-1]], widths, strict=True), start=1):
            setattr(self, f"fc{k}", nn.Linear(a, b))
        self.fc_last = nn.Linear(widths[-1], 5)
        for width, name in norms.items():
            setattr(self, name, nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for k in range(1, self.depth + 1):
            y = getattr(self, f"fc{k}")(x).relu()
            y = getattr(self, self.norms[y.shape[1]])(y)
            x = y + x if k in self.skips else y
        return self.fc_last(x)


class WeighedMixer(nn.Module):
    """What Vision Permutator and CycleMLP share: three branches of x_BHWC, weighed per channel."""

    def __init__(self, dim: int, **branches: nn.Module) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.branches = list(branches)
        for name, branch in branches.items():
            setattr(self, name, branch)
        self.reweight = mlp(dim, dim // 4, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w = (getattr(self, name)(x) for name in self.branches)
        c = self.mlp_c(x)
        a = self.reweight((h + w + c).mean((1, 2))).reshape(len(x), -1, 3).softmax(-1)[:, None, None]
        return self.proj(h * a[..., 0] + w * a[..., 1] + c * a[..., 2])


class PermuteRows(nn.Linear):
    """The matrix of the row branch of Vision Permutator, or of the column branch where `turn` is set."""

    turn = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.turn else x
        batch, rows, columns, dim = x.shape
        y = x.reshape(batch, rows, columns, rows, dim // rows).permute(0, 3, 2, 1, 4)
        y = super().forward(y.reshape(batch, rows, columns, dim)).reshape(batch, rows, columns, rows, dim // rows)
        y = y.permute(0, 3, 2, 1, 4).reshape(x.shape)
        return y.transpose(1, 2) if self.turn else y


class PermuteColumns(PermuteRows):
    turn = True


class CycleFc(nn.Module):
    """A deformable convolution of one pixel whose offsets are a buffer of the file."""

    def __init__(self, dim: int, steps: int, along_width: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(dim, dim, 1, 1)), nn.Parameter(torch.empty(dim))
        offset = torch.zeros(1, 2 * dim, 1, 1)
        for i in range(dim):
            offset[0, 2 * i + along_width] = (i + steps // 2) % steps - steps // 2
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        offset = self.offset.expand(len(x), -1, *x.shape[2:])
        return deform_conv2d(x, offset, self.weight, self.bias).permute(0, 2, 3, 1)


class Pyramid(nn.Module):
    """Stages and transitions in one list, as in both authors' files."""

    def __init__(self, stem: nn.Module, network: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.patch_embed = named(proj=stem)
        self.network = nn.ModuleList(network)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).permute(0, 2, 3, 1)
        for part in self.network:
            if isinstance(part, nn.Sequential):
                for block in part:
                    x = x + block.attn(block.norm1(x))
                    x = x + block.mlp(block.norm2(x))
            else:
                x = part.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.norm(x).mean((1, 2)))


def named(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def mlp(dim: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, out)))


def block(mixer: nn.Module, dim: int, ratio: int) -> nn.Module:
    return named(norm1=nn.LayerNorm(dim), attn=mixer, norm2=nn.LayerNorm(dim), mlp=mlp(dim, ratio * dim, dim))


def vip() -> Pyramid:
    def stage(dim: int) -> nn.Module:
        rows, columns = PermuteRows(dim, dim, bias=False), PermuteColumns(dim, dim, bias=False)
        return nn.Sequential(block(WeighedMixer(dim, mlp_h=rows, mlp_w=columns), dim, 3))

    network = [stage(16), named(proj=nn.Conv2d(16, 24, 2, stride=2)), stage(24), stage(24)]
    return Pyramid(nn.Conv2d(3, 16, 2, stride=2), network, 24)


def cyclemlp(steps: int) -> Pyramid:
    def stage(dim: int, depth: int) -> nn.Module:
        def mixer() -> nn.Module:
            return WeighedMixer(dim, sfc_h=CycleFc(dim, steps, True), sfc_w=CycleFc(dim, steps, False))

        return nn.Sequential(*(block(mixer(), dim, 4) for _ in range(depth)))

    network = [stage(16, 1), named(proj=nn.Conv2d(16, 24, 3, stride=2, padding=1)), stage(24, 2)]
    return Pyramid(nn.Conv2d(3, 16, 7, stride=4, padding=2), network, 24)


class GfNet(nn.Module):
    def __init__(self, dim: int, depth: int, side: int) -> None:
        super().__init__()
        self.patch_embed = named(proj=nn.Conv2d(3, dim, 2, stride=2))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dim))
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(
                named(norm1=nn.LayerNorm(dim, 1e-6), norm2=nn.LayerNorm(dim, 1e-6), mlp=mlp(dim, 4 * dim, dim))
            )
            self.blocks[-1].filter = nn.Module()
            self.blocks[-1].filter.complex_weight = nn.Parameter(torch.zeros(side, side // 2 + 1, dim, 2))
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            spectrum = torch.fft.rfft2(block.norm1(x).unflatten(1, (4, 4)), dim=(1, 2), norm="ortho")
            spectrum = spectrum * torch.view_as_complex(block.filter.complex_weight)
            y = torch.fft.irfft2(spectrum, s=(4, 4), dim=(1, 2), norm="ortho").flatten(1, 2)
            x = x + block.mlp(block.norm2(y))
        return self.head(self.norm(x).mean(1))
