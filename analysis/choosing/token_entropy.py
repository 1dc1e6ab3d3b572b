"""Transfer entropy at the class token: how much less the final features vary over images without this attention?

    H = sum over channels of ln(standard deviation over images, divisor N),   cost = H(whole) - H(without)

The features are what the head reads: the class token after the last norm, or the mean of the patches where there is no
class token. Taking each channel for a Gaussian, its entropy is ln(sigma) + ln(2 pi e) / 2; the constant is the same on
both sides and left out. Natural logarithm, float64, deviations pooled over all images.

Source: arXiv 2404.05657, section 3.2 and algorithm 1; sihaoevery/lambda_vit models_shrink.py ("block entropy"), which
pools 130 batches of 256 training images and skips by the plain residual.
"""

from torch import Tensor

from analysis.removal.passes import Moments, Seen

COST = "entropy lost at the class token, nats without the constant"
SKIP = "given"
MOMENTS = 2


def observe(seen: Seen) -> Tensor:
    return seen.pooled


def value(moments: Moments) -> Tensor:
    return moments.deviation(ddof=0).log().sum(-1)


def cost(whole: Tensor, without: Tensor) -> Tensor:
    return whole - without
