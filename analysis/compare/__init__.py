"""Which model is better, at which cost, with what certainty.

frames     runs to rungs: one row per run, one per rung
contrasts  differences, equivalence, ranks, planned contrasts
fairness   equal MACs, parameters or time
pareto     rows that no other beats
samples    what bias is worth in images
scaling    error against compute
tuning     what a search over recipes found
ladder     what each rung is forced to be, and what it earns
"""
