"""Attention on its way to the identity of its input, as "MLP can be a good Transformer learner" trains it away.

With a share lambda from 1 to 0 the attention half of a layer is, in its published code,

    x <- (2 - lambda) x + lambda DropPath(Attention(LN(x)))

so at 1 it is the ordinary residual attention, and at 0 it is 2x (`Double`): what the branch adds has become x itself,
not LN(x). The MLP half that follows is untouched, and the class token is a token like any other.
"""

import torch
from torch import Tensor, nn

from archs.parts.layers import Residual

SOURCE = "arXiv 2404.05657, section 3.3; code: sihaoevery/lambda_vit, models_v4.py and models_small_timm3_lambda.py"


class Double(nn.Module):
    """2x: a residual attention that has become the identity of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Diluted(Residual):
    """The residual `whole` at a share lambda; it has the same parameters under the same names.

    The share is a buffer that no checkpoint holds, so that a step which changes it needs no new compilation; in
    float64, because 1 - 1/299 in float32 is wrong by 6e-8. Being a scalar, it lets the stream keep its dtype.
    """

    def __init__(self, whole: Residual) -> None:
        nn.Module.__init__(self)
        self.norm, self.branch, self.scale, self.drop_path = whole.norm, whole.branch, whole.scale, whole.drop_path
        self.register_buffer("lambda_", torch.ones((), dtype=torch.float64), persistent=False)
        self.gone = False
        """Whether lambda is 0: then the attention is not computed, and its parameters get no gradient."""

    def dilute(self, lambda_: float) -> None:
        """Set the share. Raises ValueError for one that is none."""
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda {lambda_} is not from 0 to 1")
        self.lambda_.fill_(lambda_)
        self.gone = lambda_ == 0

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum of the skip x and what the attention gave, after its drop-path."""
        return (2 - self.lambda_) * x + self.lambda_ * branch

    def forward(self, x: Tensor) -> Tensor:
        if self.gone:
            return 2 * x
        return self.join(x, self.drop_path(self.scale(self.branch(self.norm(x)))))

    def init_non_persistent_buffers(self) -> None:
        """Fill the buffer after a model was built on the meta device."""
        self.lambda_ = torch.ones_like(self.lambda_)
        self.gone = False
