"""Figures as inline SVG.

looks            the hue and the shape of every family
forest           what each ingredient buys
scatter          accuracy against cost
draw             a figure of matplotlib as a citizen of a page
bias_figures     permutation gaps
removal_figures  which layers each criterion gives away
"""
