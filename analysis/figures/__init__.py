"""Figures as inline SVG.

draw          curves, ladders, scatter
bias_figures  probes and permutation gaps
"""
