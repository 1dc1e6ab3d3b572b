"""Who runs it, and how it goes; told by folders alone.

worker    takes the next run that nobody has
task      what an element of a SLURM array runs
local     worker processes on this machine
claims    who has what
choose    which runs a launch trains
tables    runs that published tables have as done
probing   PROBES as work of the queue
states    how each run stands
progress  how far a sweep is
logs      what a run said
cancel    runs given up
collect   a sweep as tables
"""
