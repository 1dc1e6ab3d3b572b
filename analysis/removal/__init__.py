"""Which layers to lose the attention of: criteria asked, and how far they can be trusted.

subject  a trained model before images, with the attention of some layers skipped
passes   one pass over the images for each set of layers, and what it leaves of them
ranks    orders of layers, once or greedy; stability over images and seeds; rank correlation
asking   all criteria of one model, and what that takes
sheets   the same on the screen, and the line to train with
"""
