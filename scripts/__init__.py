"""What a person types: parse, call, print. Each answers --help at once.

train finetune validate   one model; make_beton its data
list_models profile_model what there is, and what it costs; check_family proves a family's file
sweep tune                many runs
report compare probe      what they show; symmetry, selftest
bench/                    measures the project itself
"""
