"""The study of removals as it was written down: planned before its sources are trained, equal budgets, honest cells."""

import importlib

import pytest

from engine.errors import Refusal
from engine.fields import dilution
from engine.run import Run
from slurm.define import removal
from slurm.define.load import load

SOURCE = Run(model="deit_nano", model_kwargs={"depth": 4, "global_pool": "avg"}, epochs=9, seed=3)
ORDERS = {"token_entropy,greedy": "3,0,1,2", "cosine,": "0,3,2,1", "ablation,greedy": "1,2,0,3"}


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """A results folder with choices for runs."""
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path))

    def put(study, sources, orders=ORDERS, repeats=1):
        rows = ["checkpoint,criterion,way,layer,place"]
        for source in sources:
            for name, order in orders.items():
                layers = [int(layer) + 4 * i for i in range(repeats) for layer in order.split(",")]
                rows += [f"results/runs/{source.name},{name},{layer},{place}" for place, layer in enumerate(layers, 1)]
        (tmp_path / study).mkdir()
        (tmp_path / study / "choices.csv").write_text("\n".join(rows) + "\n")

    return put


def test_the_study_is_refused_with_the_command_until_layers_are_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path))
    monkeypatch.setattr("engine.folder.store.ROOT", tmp_path)
    with pytest.raises(Refusal, match=r"no layers are chosen yet.*choose_layers.py \S+-deit_1m-s0 .*choices.csv"):
        load("removal")


def test_the_study_is_what_it_says(chosen):
    study, base = (importlib.import_module(f"slurm.sweeps.{name}") for name in ("removal", "removal_base"))
    sources = list(base.runs())
    draws = {f"random_layers,draw {i}": order for i, order in enumerate(("2,1,3,0", "3,1,2,0", "0,2,1,3"), 1)}
    chosen("removal", sources, ORDERS | draws, repeats=2)
    sweep = load("removal")
    assert len(sweep.runs) <= 153 and {run.seed for run in sweep.runs} == {0, 1, 2}
    shares = {len(run.final_kwargs["mlp_layers"]) for run in sweep.runs}
    assert shares == {2, 4, 8} and {removal.way_of(run) for run in sweep.runs} == set(study.WAYS)
    assert sum(len(run.final_kwargs["mlp_layers"]) == 8 for run in sweep.runs) == 3 * 4
    by_seed = {source.seed: source.signature for source in sources}
    assert all(run.initial_identity == f"run:{by_seed[run.seed]}" for run in sweep.runs)
    own = ("model_kwargs", "seed", "initial_checkpoint", "initial_identity", *dilution.FIELDS)
    recipes = {tuple((k, str(v)) for k, v in run.record().items() if k not in own) for run in sweep.runs}
    assert len(recipes) == 1  # one budget
    assert all(dilution.gone_from(run) in (0, 4) and run.epochs == 5 for run in sweep.runs)


def test_ways_are_what_their_names_say(chosen):
    chosen("s", [SOURCE])
    ways = ("drop", "double", "linear", "cosine", "depthwise")
    made = list(removal.runs("s", [SOURCE], ["cosine"], [50], ways, {"epochs": 4, "lr": 1e-3}, 2))
    assert [removal.way_of(run) for run in made] == list(ways)
    left = {"depth": 4, "global_pool": "avg", "mlp_layers": [0, 3]}
    kwargs = [left | {"replacement": "skip"}, left, left, left, left | {"replacement": "depthwise"}]
    assert [run.final_kwargs for run in made] == kwargs
    assert [run.dilute_layers for run in made] == [None, None, "0,3", "0,3", None]
    assert len({run.signature for run in made}) == 5 and all(run.seed == 3 for run in made)


def test_equal_choices_are_one_run_and_dropped_starts_cover_all_orders(chosen):
    chosen("s", [SOURCE], ORDERS | {"first_layers,": "0,1,2,3"})
    made = list(removal.runs("s", [SOURCE], ["cosine", "token_entropy, greedy"], [50], ["drop"], {"epochs": 2}, 1))
    assert made[0] == made[1]
    starts = removal.dropped(made, removal.table("s")[0])
    found = {(tuple(run.final_kwargs["mlp_layers"]), removal.way_of(run)) for run in starts}
    assert found == {(layers, way) for layers in ((0, 3), (1, 2), (0, 1)) for way in ("drop", "double")}
