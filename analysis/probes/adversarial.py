"""Adversarial: how small a change of the pixels, chosen against the model, makes it wrong?

Every pixel may move by e/255 and stays between 0 and 1; the standardisation is part of the model.

    fgsm_e: accuracy after one step of e along sign(grad loss)
    pgd_e: under the worst of `restarts` times `steps` steps of e/4, each clipped back, one from the image, the others
           from random points; an image counts as lost once it was wrong at any step
    R_e = pgd_e / acc        random_e: accuracy under the worst of `trials` random corners of the same cube

e is 1, 2, 4 and 8; accuracies in percent, R a ratio. An attack that fails may prove itself and not the model, so five
flags say whether it did its work, 1 if so: sane_steps, pgd_e is never above fgsm_e; sane_radius, a larger e never above
a smaller one; sane_large, at e = 128, from where every image can be made grey, fewer than 1 % are left; sane_random, at
no e a random corner fools what pgd_e did not, in more than 1 % of the images; sane_transfer, neither does what was found
against the same model with its logits made smooth by a tenth (noise of 4/255 averaged over 4 draws): a model that only
hides its gradient (Athalye et al., arXiv 1802.00420) fails these two.

Source: Goodfellow et al., arXiv 1412.6572; Madry et al., arXiv 1706.06083; R: Benz et al., arXiv 2110.02797. This is no
AutoAttack: accuracies are upper bounds.
Null: accuracy under one random corner of the cube, as if the direction did not matter; of R that over acc.
Expect: at equal accuracy flat and patchified MLPs are the most robust at e = 1, depthwise convolution the least; at
e = 8 nearly nothing is left of a model that was not trained for it.
Cost: some 1,000 passes forward and back over at most `images` test images, fewer where these are lost early.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.bias import pixels
from analysis.bias.probe import Estimate, Subject, agreement, by_chance, hits, over_images
from engine.rng import derive
