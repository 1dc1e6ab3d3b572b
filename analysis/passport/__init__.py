"""The passport of one module: what it is forced to be, what it learned, what it costs; on one page.

asked     what a command asks for: a name, a file's function or a run
holder    the module, its weights and its images
inside    what a module holds, unit by unit, from the image to the logits
forced    receptive field and equivariances on random weights
declared  what its family says of it: claims, axes, relabelings
learned   accuracy and probes of trained weights
cost      parameters, MACs, memory and speed
made      all of it measured, part by part
found     what came of it, and what is not known
pictures  its figures, on the page and as files
parts     the sections of the page, in words and tables
page      the page, its JSON and its pictures as files
"""
