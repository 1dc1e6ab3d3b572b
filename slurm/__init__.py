"""From a sweep to finished runs, on this machine or on a cluster.

sweeps/   one file a sweep: yours
define/   what to run: runs, grids, searches, and what they would cost
queue/    who runs it and how it goes: workers, claims, states, tables
cluster/  SLURM: profiles, submission, the scheduler's words
flags     of sweep.py and tune.py
launch    the one door: train what is missing, wherever it stands
clean     what a sweep leaves that nothing needs
escalate  more memory for what died from too little
totals    what a sweep takes beside time
wait      until the jobs of a sweep have ended
prepare   what must hold before: models, data, folders
"""
