"""Which bias a model was built with, and which it learned.

symmetry      relabelings that training cannot tell apart
signatures    the same of a sweep's rungs, kept or measured
probe         what probes share: images, views, intervals, nulls
pairs         two runs against each other, block by block
probe_runs    probes over finished runs
probe_table   what they measured
probe_sheets  the same on the screen
emergence     the same over training, and against the permutation gap
resolution    what weights are worth at other sizes of image
dsd           a task whose answer is known
"""
