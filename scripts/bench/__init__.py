"""What measures the project itself; each figure is a ratio of two things timed in turn.

training           the engine against a bare loop and timm's train.py
families           our models against independent ones
depthwise          our depthwise convolution against torch's
attention          our attention in bfloat16 against torch's
removal            models without some of their mixing, before and after healing
merging            merged tokens against whole ones: from where on they pay
sweeps             what sweeps add to training
versions           sweeps of this checkout against those of another
timm_suite         timm's own tests, on our models
chaos              kills and damages a run, and compares the end bit for bit
rank_pruning_leak  what validation images of a published split are worth
"""
