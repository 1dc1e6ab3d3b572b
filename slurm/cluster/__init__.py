"""SLURM.

clusters   resources and profiles: where and with what
scheduler  what SLURM is asked and told
nodes      those that had a fault
submit     one array per shape of resources
snapshot   the code that queued jobs run
doctor     what is here, and what to mend
"""
