"""What families are made of; nothing here knows a family.

zoo         names to models: `mixer_s16` is VARIANTS["s16"] of archs/mixer.py
family      what a family's file must and may hold, and one clear error for each mistake
backbone    the skeleton: stem, stages of blocks, norm, mean over the grid, head
init        how weights start where papers mean the same start
layers      layers that papers of two or more families mean alike
sizes       what the arguments of a family's build may be
config      what timm calls a model's default_cfg
bias        what an architecture claims to be forced to be
relabeling  an order of an image's pixels, and how weights follow it
weights     state dicts: keys renamed, and what the shapes of weights say
convert     public checkpoints under our names, read strictly, carried to other sizes
budget      the width at which a model costs so many MACs or parameters
"""
