"""From runs and tables to answers.

compare/    accuracies, contrasts, fairness at equal cost, scaling
factorial/  cells: effects, claims, rates, seeds and images
bias/       symmetry signature, probes over runs, the laboratory's self-test
probes/     one file a probe
measures/   what probes compute with
passport/   one page about any module
removal/    which layers can lose their attention
choosing/   one file a criterion for that
figures/    inline SVG
report/     the page, and its sections
stats       intervals, tests, corrections
typeset     numbers and tables as text
judges      which images judge: validation, holdout
notebook    results as values for a notebook; a probe on any model
published   what others report, and what published runs predicted
"""
