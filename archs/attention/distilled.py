"""Layers without their mixing that learn, each by itself, to give what the layers that have it give.

The teacher runs on the images. What it gives each such layer goes into the student's layer of that number, too, and
with z what goes in, T(z) and S(z) what the two layers give, the student's is off by

    error = |S(z) - T(z)|^2 / |T(z) - z|^2        (squares summed over the tokens and channels of an image)

which is 0 where it does the same and 1 where it does nothing; the loss is the mean over layers and images. Layers do
not see each other's faults, and weights outside of them get no gradient. With a layer's mixing gone (x <- x) its MLP
has to bring alone what mixing and MLP brought; as it sees one token at a time, what attention fetched from others it
can only guess at.

Source: hidden states of blocks matched one by one on the teacher's inputs as in arXiv 2408.10189 (MOHAWK), section 4.2,
where the norm is not relative; whole layers of an encoder replaced by a feed-forward network that learns what they gave
as in arXiv 2311.10642 (its ELR), whose network sees all tokens at once, where ours keeps the MLP that was there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archs.attention.removed import Removable


class Distilled(nn.Module):
    """A student beside its teacher: images BCHW -> its logits, or while it learns so the error of each image, (B,).

    Args:
        layers: those of the student that learn from the teacher's, which has their mixing.
    """

    def __init__(self, student: Removable, teacher: Removable, layers: Sequence[int]) -> None:
        super().__init__()
        self.student, self.teacher, self.layers = student, teacher.requires_grad_(False), sorted(layers)
        self.learning = True
        """Whether it gives errors."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.errors(x_BCHW).mean(1) if self.learning else self.student(x_BCHW)

    @torch.compiler.disable
    def errors(self, x_BCHW: Tensor) -> Tensor:
        """Of each image and layer, (B, layers), in float32 or better; without stochastic depth."""
        found = []
        for i, given, wanted in self.taught(x_BCHW):
            layer = self.student.stages[0][i]
            training = layer.training
            made = layer.eval()(given).to(given.dtype)
            layer.train(training)
            off, moved = ((a - b).square().flatten(1).sum(1) for a, b in ((made, wanted), (wanted, given)))
            found.append(off / moved.clamp(min=torch.finfo(moved.dtype).tiny))
        return torch.stack(found, 1)

    @torch.no_grad()
    def taught(self, x_BCHW: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Each layer that learns, what the teacher's is given and what it gives."""
        x, found = self.teacher.eval().embed(x_BCHW), []
        for i, layer in enumerate(self.teacher.stages[0][: self.layers[-1] + 1]):
            given, x = x, layer(x).to(x.dtype)
            if i in self.layers:
                found.append((i, given, x))
        return found
