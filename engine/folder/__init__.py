"""What a run leaves on disk, and who may write it.

store        the layout of a run's folder; replacing files whole
lease        the attempt that has the right to write
checkpoint   the state of an unfinished run
status       heartbeat, metrics.jsonl, log.txt
environment  versions, machine, commit, data
trackers     mirrors in TensorBoard and wandb
"""
