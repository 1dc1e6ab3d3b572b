"""Transfer entropy at the head: how much less the logits vary over images without this attention?

    H = sum over classes of log2(standard deviation over images, divisor N - 1),   cost = H(whole) - H(without)

The Gaussian's constant is left out as in `token_entropy`. Base 2 and N - 1 are the published code's; it computes in
float32, this in float64.

Source: arXiv 2404.05657, section 3.2; sihaoevery/lambda_vit models_shrink.py ("head entropy").
"""

from torch import Tensor

from analysis.removal.passes import Moments, Seen

COST = "entropy lost at the head, bits without the constant"
SKIP = "given"
MOMENTS = 2


def observe(seen: Seen) -> Tensor:
    return seen.logits


def value(moments: Moments) -> Tensor:
    return moments.deviation(ddof=1).log2().sum(-1)


def cost(whole: Tensor, without: Tensor) -> Tensor:
    return whole - without
