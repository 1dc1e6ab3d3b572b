"""Which bias a model was built with, and which it learned.

symmetry      relabelings that training cannot tell apart
signatures    the same of a sweep's rungs, kept or measured
probe         what probes share: images, views, intervals, nulls
probe_runs    probes over finished runs
probe_table   what they measured
probe_sheets  the same on the screen
dsd           a task whose answer is known
"""
