"""From images to normalised batches.

sets       the data sets, one table entry each
folders    image folders: which are classes, which files are images
gaussian   clones of a data set: the mean and covariance of each class, and nothing else
splits     which folder holds which split; a split by a hash where there is one folder
rgb        what the pixels of an image file are
beton      .beton files: where they are, whether they are whole
write      image folders and downloads into .beton files
ensure     the files of a run, chosen among stored sizes, written where that takes no download
staging    .beton files on the node's own disk
verify     what a file holds, for a person to look at
loaders    the order and share of samples per epoch and process; batches
normalize  uint8 batches to what a model takes
ffcv/      FFCV, mended; augment/ what training does to an image
"""
