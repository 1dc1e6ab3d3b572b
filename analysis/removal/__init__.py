"""Which layers to lose the attention of: criteria asked, how far they can be trusted, and what it cost.

subject   a trained model before images, with the attention of some layers skipped
passes    one pass over the images for each set of layers, and what it leaves of them
ranks     orders of layers, once or greedy; stability over images and seeds; rank correlation
asking    all criteria of one model, and what that takes
sheets    the same on the screen, and the line to train with
before    what is left right after a removal, judged as the source and the healed run are
measured  rows of the bench: every start before and after healing, and what it costs
bench     means over seeds, paired differences of criteria and ways, as tables
speed     images a second of a model without some of its mixing
"""
