"""Token mixers of the lattice, one a file: `archs.create("lattice_s", mixer="dense")` is `archs/mixing/dense.py`.

A file holds AXES, where the mixer is not at the default of an axis (archs/ingredients/axes.py), and the class `Mixing`,
which says what its numbers are (`hold`), what it does (`mix`), how its numbers follow a new order of the patches
(`follow`) and what it costs (`macs`); archs/ingredients/mixer.py does the rest. What stands behind the star of its
constructor are its arguments, spelt as those of `archs.lattice.build`.

    own weights    dense  banded (window)      dense_c  banded_c    with a matrix per channel
    displacement   toeplitz  kernel (window)   toeplitz_c  depthwise

`dial` stands between dense and kernel, or dense_c and depthwise; `dense_from_kernel` and `dense_from_impulse` are dense
and only start otherwise.
"""
