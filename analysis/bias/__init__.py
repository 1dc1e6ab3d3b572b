"""Which bias a model was built with, and which it learned.

symmetry      relabelings that training cannot tell apart
signatures    the same of a sweep's rungs, kept or measured
probe         what probes share: images, views, intervals, nulls
pixels        test images as pixels from 0 to 1, and models that take them
depth         what a model holds after each block
shapes        pictures of a shape in a texture
alike         how alike two sets of features are
pairs         two runs against each other, block by block
corruption    fifteen ways to spoil an image
probe_runs    probes over finished runs
probe_table   what they measured
probe_sheets  the same on the screen
emergence     the same over training, and against the permutation gap
mixing        the matrix over the tokens that a mixer applies
fields        maps over pixels: where their mass is
gabor         the Gabor function nearest to an image
pictures      contact sheets
resolution    what weights are worth at other sizes of image
dsd           a task whose answer is known
"""
