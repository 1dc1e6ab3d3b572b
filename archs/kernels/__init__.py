"""Ways around kernels of PyTorch that leave most of a CPU unused in training; without them all runs, more slowly.

attention        softmax attention in bfloat16, by PyTorch's kernel in float32
depthwise        a depthwise convolution that trains faster on a CPU, and otherwise is PyTorch's
weight_gradient  the loop over its weight gradient, and how it is compiled
"""
