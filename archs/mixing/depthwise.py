"""A depthwise convolution: one kernel for all places, one each for the channels."""

from torch import Tensor
from torch.nn.functional import conv2d, pad

from archs.ingredients.mixer import Start
from archs.mixing import kernel
from archs.parts.backbone import Grid

AXES = {"reach": "window", "places": "displacement", "channels": "each"}


class Mixing(kernel.Mixing):
    """`kernel` with a group per channel, executed as a convolution: its matrices would take five times as long."""

    def __init__(self, dim: int, grid: Grid, start: Start, *, kernel_size: int, wrap: bool) -> None:
        super().__init__(dim, grid, start, kernel_size=kernel_size, wrap=wrap, groups=dim)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        # The weight is stored with three axes: `channels_last` restrides those of four.
        weight, x_BCHW = self.value("weight")[:, None], x_BHWC.permute(0, 3, 1, 2)
        radius = weight.shape[-1] // 2
        if self.wrap:
            y_BCHW = conv2d(pad(x_BCHW, [radius] * 4, mode="circular"), weight, groups=self.dim)
        else:
            y_BCHW = conv2d(x_BCHW, weight, padding=radius, groups=self.dim)
        return y_BCHW.permute(0, 2, 3, 1)

    def macs(self) -> tuple[int, int]:
        return super().macs()[0], self.weight.numel() * self.num_tokens
