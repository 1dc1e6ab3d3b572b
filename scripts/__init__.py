"""What a person types: parse, call, print. Each answers --help at once.

make_beton make_shapes       data
list_models profile_model    what there is, and what it costs
check_family                 what the tests prove of a family of yours
train finetune validate      one model
export_model                 its weights, as timm reads them
minimal                      the same numbers in plain PyTorch, to be read
sweep tune                   many runs
report compare               what they show
rates seeds                  what a study asks before its effects: learning rates, enough seeds
probe emergence              which bias trained models have, and when it came
passport                     one page about any module: forced, learned, costs
symmetry selftest            which bias they are made with, and a task whose answer is known
resolution                   what runs are worth at other sizes of image
choose_layers                which attention a model can do without
prune                        what a run is worth without most of its weights
bench/                       measures the project itself
"""
