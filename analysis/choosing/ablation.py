"""Mean ablation: how much accuracy is lost when this attention adds to each token what it adds on average?

    cost = accuracy(whole) - accuracy(without), in points; without: x + mean over images of attention(LN(x))

The mean is token by token and of the same images, from the whole model, and is not drawn again when images are
resampled: the attention keeps its constant part and loses what depends on the image.

Source: Wang et al., "Interpretability in the wild", arXiv 2211.00593, section 2.2 (mean ablation).
"""

from torch import Tensor

from analysis.removal.passes import Moments, Seen

COST = "accuracy lost, points"
SKIP = "mean"
MOMENTS = 1


def observe(seen: Seen) -> Tensor:
    return (seen.logits.argmax(1) == seen.labels).double()[:, None]


def value(moments: Moments) -> Tensor:
    return 100 * moments.mean[:, 0]


def cost(whole: Tensor, without: Tensor) -> Tensor:
    return whole - without
