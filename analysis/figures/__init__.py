"""Figures as inline SVG.

draw             curves, ladders, scatter
bias_figures     probes and permutation gaps
removal_figures  which layers each criterion gives away
"""
