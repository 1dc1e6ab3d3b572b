"""From images to normalised batches.

sets       the data sets, one table entry each
beton      .beton files: where they are, whether they are whole
write      image folders and downloads into .beton files
verify     what a file holds, for a person to look at
loaders    the order and share of samples per epoch and process; batches
normalize  uint8 batches to what a model takes
ffcv/      FFCV, mended; augment/ what training does to an image
"""
