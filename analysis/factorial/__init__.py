"""A study whose rungs are cells: what one model of all runs says of effects, of seeds and images, of rates.

effects    the blocked model: estimates, intervals, tests of contrasts
families   the claims of a sweep, family by family
dose       accuracy over the strictness of a dial, and where its peak is
shares     which share of a gap each arm closes
deviation  residual deviation alone: are there enough seeds?
rates      the peak of each cell, from a tuning sweep
columns    all contrasts of a sweep, and what they do to other measures
beside     the same cells in other sweeps
images     seeds apart from test images, and which errors are shared
predicted  the same as tables, from the predictions that runs leave
"""
