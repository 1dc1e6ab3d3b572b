"""What an architecture is forced to be, said as claims that tests measure on random weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Structural claims of one family about the map from image to feature map, in units of image patches.

    A model whose grid is 1 x 1 (the plain MLP) is measured through its logits instead of its feature map. Claims of a
    variant that differ from its family's BIAS stand in the family's VARIANT_BIAS: variant -> the fields that differ.
    """

    stem: Literal["dense", "local", "shared"]
    """What the first layer reads: the whole image; one patch, with its own weights; one patch, with shared weights."""
    receptive_field: Literal["token", "local", "global"]
    """How many tokens one token reads in one block. On a 1 x 1 grid the token is the image: global."""
    permutation_equivariant: bool
    """Permuting the patches of the image permutes the feature map in the same way and changes nothing else."""
    shift_equivariant: bool
    """Shifting the image by one patch shifts the feature map by one token, away from the border."""
    grid_bound: bool
    """Weights belong to places of the grid, so the model is bound to one image size."""
