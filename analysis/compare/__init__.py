"""Which model is better, at which cost, with what certainty.

assemble   the tables of scripts/compare.py
sweeps     what is asked of a sweep
frames     runs to rungs: one row per run, one per rung
contrasts  differences, equivalence, ranks, planned contrasts
fairness   equal MACs, parameters or time
pareto     rows that no other beats
samples    what bias is worth in images
scaling    error against compute
exponents  its exponents by family
tuning     what a search over recipes found
tuned      the same on the screen and in files
ladder     what each rung is forced to be, and what it earns
"""
