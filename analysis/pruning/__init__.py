"""What a trained model is without some of its weights or units: accuracy against sparsity, by criterion.

measured  rows: a model right after each round of pruning, and after it trained again
curves    means over seeds, areas under them, paired differences of criteria, as tables
figures   accuracy against what is left
"""
