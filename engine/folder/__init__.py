"""What a run leaves on disk, and who may write it.

store        the layout of a run's folder
files        replacing files whole; tables that several processes add to
locks        who holds a file
lease        the attempt that has the right to write
checkpoint   the state of an unfinished run
published    runs that tables have as done
epochs       weights that are kept on the way
predictions  what the last evaluation predicted, per image
status       heartbeat, metrics.jsonl, log.txt
environment  versions, machine, commit, data
weights      files of weights that others wrote, read without executing them
trackers     mirrors in TensorBoard and wandb
"""
