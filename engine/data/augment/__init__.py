"""What training does to an image, compiled: a pixel depends on (seed, epoch, sample index) alone.

pipeline     draws by counter, crop, flip, erase: the Augmentation of a run
kernels      functions compiled once per machine
photometric  Pillow's image operations
policy       RandAugment and its relatives by timm's names
shifts       all shifts that a crop can give, to average over after training
resample     crop and resize
"""
