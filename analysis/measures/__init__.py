"""What probes of trained models are computed with.

alike       how alike two sets of features are
corruption  fifteen ways to spoil an image
exciting    the image that excites a unit most
depth       what a model holds after each block
fields      maps over pixels: where their mass is
gabor       the Gabor function nearest to an image
mixing      the matrix over the tokens that a mixer applies
pictures    contact sheets
pixels      test images as pixels from 0 to 1, and models that take them
shapes      pictures of a shape in a texture
"""
