"""One file a section of the page; a new one is one new file, found by its name.

It has a docstring, PLACE (a number: sections stand by it), TITLE (its heading; "" for what stands above all headings),
SHORT (its link) and `draw(page) -> Section | None` (analysis/report/page.py); None where these runs say nothing of it.

asked       what the sweep was made to compare: forest and matrix
softness    dose and response of a dial; share of a gap that each arm closes
accuracy    at equal cost
pareto      accuracy against latency and images/s
built       symmetry signature and permutation gap
learned     probes
emerged     probes over training, and whether they tell the permutation gap
curves      learning curves
recipes     rates and decays that were tried
published   what others report
health      how it went, what it does not show
reproduce   commands, versions, signatures
removal     mixing removed: before and after healing
"""
