"""What the lattice is made of: the axes that a token mixer stands on, and the parts of its module.

A mixer is one file, `archs/mixing/NAME.py`; `archs/lattice.py` is the frame around it.

axes        the thirteen axes, their values, and where an axis cannot matter
declared    mixers as their sources tell them, without importing torch
difference  what two models differ in
lift        convolutions as dense weights, and the nearest convolution of dense weights
penalties   what pulls dense weights towards a convolution
penalised   the weights of a model that such penalties hold
mixer       what a mixer's module is: its numbers, their start, its tokens in another order
places      matrices over the places of a grid, and their product with tokens
"""
