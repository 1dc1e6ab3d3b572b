"""The two studies of softness as they were written down: runs, equal steps, pooled sources, claims, and their cost."""

import pytest

from engine.data.sets import lookup
from engine.fields.rungs import names
from slurm.define.load import load
from slurm.sweeps import dial, lattice

IMAGES = lookup("cifar10").train_size
SECONDS = {"depthwise": 0.085, "dense_c": 0.1, "dense_from_kernel": 0.1, "dial": 0.11}  # a step, measured
HOURS = 20


def steps(run):
    return run.epochs * ((run.train_samples or IMAGES) // run.batch_size)


@pytest.fixture(scope="module", params=["dial", "gap_closed"])
def sweep(request):
    return load(request.param)


def test_every_run_of_the_dial_takes_the_same_steps_and_warm_up():
    runs = load("dial").runs
    assert len(runs) == 99 and {steps(run) for run in runs} == {2_000}
    assert {run.warmup_epochs * steps(run) / run.epochs for run in runs} == {200}
    assert all(run.strictness_epochs == run.epochs / 2 for run in runs if run.strictness_to is not None)


def test_the_ends_have_their_tuned_rates_and_the_values_between_them_rates_between():
    tuned = {key: lattice.LR[lattice.RUNGS[key]] for key in ("dense_c", "depthwise")}
    rates = {dial.rate(value): None for value in dial.VALUES}
    assert [*rates] == sorted(rates) and len(rates) == len(dial.VALUES)
    assert (min(rates), max(rates)) == (tuned["dense_c"], tuned["depthwise"])
    of = {run.model_kwargs["mixer"]: run.lr for run in load("gap_closed").runs}
    assert of == tuned | {"dense_from_kernel": tuned["dense_c"]}


def test_an_arm_has_the_steps_of_the_flat_net_with_those_of_its_source():
    sources = {run.signature: run for run in load("gap_closed_base").runs}
    runs = load("gap_closed").runs
    assert len(runs) == 50 and sources.keys() <= {run.signature for run in runs}
    for run in runs:
        if run.signature not in sources:
            before = sources.get((run.initial_identity or "").removeprefix("run:"))
            assert steps(run) + (steps(before) if before else 0) == 4_000
            assert before is None or before.seed == run.seed


def test_seeds_of_an_arm_are_one_rung(sweep):
    called = names(sweep.runs)
    seeds = {}
    for run in sweep.runs:
        seeds.setdefault(called[run.signature], []).append(run.seed)
    wanted = list(range(3 if sweep.name == "dial" else 5))
    assert all(sorted(own) == wanted for own in seeds.values()), seeds
    asked = {rung for family in sweep.families.values() for one in family.contrasts.values() for rung in one.weights}
    assert asked <= seeds.keys()


def test_both_fit_into_the_budget():
    runs = {run.signature: run for name in ("dial", "gap_closed_base", "gap_closed") for run in load(name).runs}
    hours = sum(SECONDS[run.model_kwargs["mixer"]] * steps(run) for run in runs.values()) / 3600
    assert 8 < hours < HOURS - 3, "and room for tests"
