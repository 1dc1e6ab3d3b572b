"""Which bias a model was built with, and which it learned.

symmetry      relabelings that training cannot tell apart
probe         what probes share: images, views, intervals, nulls
probe_runs    probes over finished runs
probe_table   what they measured
probe_sheets  the same on the screen
resolution    what weights are worth at other sizes of image
dsd           a task whose answer is known
"""
