"""Compiled loops, where PyTorch's own leave most of the processor unused; without them everything runs, more slowly.

depthwise        a depthwise convolution that trains faster on a CPU, and otherwise is PyTorch's
weight_gradient  the loop over its weight gradient, and how it is compiled
"""
