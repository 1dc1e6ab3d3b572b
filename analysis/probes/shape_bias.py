"""Shape bias: of a model that learned classes told by shape and texture alike, which of the two does it go by?

For runs on the data set of `scripts/make_shapes.py`, imagefolder/shapes and what begins so: twelve silhouettes, twelve
textures. On new pictures in which the two say different classes:

    shape, texture: accuracy by the one or the other       shape_bias = shape / (shape + texture)
    matched: accuracy on new pictures in which both say the same

All in percent; shape_bias is NaN where neither is ever said. Train on `--cue both`, and as a control that a model can
learn each cue alone on `--cue shape` and `--cue texture`: there shape and texture are the accuracies of the control.

Source: Geirhos et al., arXiv 1811.12231, with pictures that are generated. Null: chance, see `by_chance`; of shape_bias
that of a model which says neither more often than the other, 50.
Expect: attention above flat MLPs and token MLPs above depthwise convolution; a bag of patches about 0.
Alone, shape is the harder cue: a small flat MLP read it in 18 % (texture 69 %) after 1,200 pictures, timm's test_resnet
in 98 % after 3,600.
Cost: 1,300 images through the model, and some seconds to draw them. Other data sets: nothing is measured.
"""

import numpy as np
import torch

from analysis.bias.probe import Estimate, Subject, agreement, hits, over_images
from analysis.measures import pixels, shapes

PROTOCOL = {"per_pair": 8, "per_class": 20, "seed": 0}
UNITS = {"shape_bias": "%", "shape": "%", "texture": "%", "matched": "%"}
COST = (0.1, 10)
HEADLINE = ("shape_bias", "shape", "texture", "matched")
TITLE = "Shape bias: what a model goes by where shape and texture say different classes"
WORDS = {"shape_bias": "shape bias", "shape": "by shape", "texture": "by texture", "matched": "both alike"}


def measure(subject: Subject) -> dict[str, Estimate]:
    """All keys of UNITS; none for a model of another data set."""
    if not is_asked(subject):
        return {}
    size, classes = subject.img_size, subject.num_classes
    shape, texture, images = zip(*shapes.conflicts(PROTOCOL["per_pair"], size, PROTOCOL["seed"]), strict=True)
    said = ask(subject, images)[None]
    label, _, _, matched = zip(
        *shapes.pictures("both", "probe", PROTOCOL["per_class"], size, PROTOCOL["seed"]), strict=True
    )
    scores_N2 = np.stack([hits(said, np.array(cue)) for cue in (shape, texture)], 1)
    return {
        "shape_bias": over_images(scores_N2, bias, 50.0),
        "shape": agreement(said, np.array(shape), classes),
        "texture": agreement(said, np.array(texture), classes),
        "matched": agreement(ask(subject, matched)[None], np.array(label), classes),
    }


def is_asked(subject: Subject) -> bool:
    """Whether the model's classes are those of the pictures."""
    return subject.dataset.startswith("imagefolder/shapes") and subject.num_classes == len(shapes.SHAPES)


def bias(means: np.ndarray) -> np.ndarray:
    """Of accuracies (..., 2) by shape and by texture."""
    total = means.sum(-1)
    return 100 * means[..., 0] / np.where(total > 0, total, np.nan)


def ask(subject: Subject, images: tuple[np.ndarray, ...]) -> np.ndarray:
    """The class (N,) of pictures (S, S)."""
    like, _ = next(iter(subject.images))
    grey = torch.from_numpy(np.stack(images)[:, None].repeat(like.shape[1], 1)).to(like)
    return pixels.predict(subject, grey)


def draw(subject: Subject) -> bytes | None:
    """Every shape with its own texture, and with the next one's."""
    if not is_asked(subject):
        return None
    own = [image for *_, image in shapes.pictures("both", "probe", 1, subject.img_size)]
    pairs = {(shape, texture): image for shape, texture, image in shapes.conflicts(1, subject.img_size)}
    mixed = [pairs[shape, (shape + 1) % len(own)] for shape in range(len(own))]
    return pixels.png(np.stack([own, mixed])[..., None])
