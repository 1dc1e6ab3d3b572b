"""Fields of a run: what they may hold, and what they say together.

values    what users write in flags, grids and YAML, read in one way
mistakes  a mistake in them is one line
sizes     pixels: 32 is a square, 32x64 height and width
effects   when a field changes the result, and which exclude each other
choices   orders in which layers lose their mixing, from a committed table
softness  a strictness that changes over training, and penalties
dilution  layers whose attention is trained away: when, what is left, how long they learn from what they were
how       what must not change a result: workers, device, logging
limits    how much one command may start
rungs     which runs may be pooled, and what tables call them
claims    contrasts of rungs, and which may bear an ingredient's name
"""
