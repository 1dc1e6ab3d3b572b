"""The study of removals as it was written down: planned before its sources are trained, equal budgets, honest cells."""

import importlib

import pytest

from engine.errors import Refusal
from engine.fields import dilution, rungs
from engine.folder import store
from engine.run import Run, make_how, make_run
from engine.train import train
from scripts import choose_layers
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
    with pytest.raises(Refusal, match=r"no layers are chosen yet.*choose_layers.py \S+-deit_1m-s0 .*--study removal"):
        load("removal")


def test_the_study_is_what_it_says(chosen):
    study, base = (importlib.import_module(f"slurm.sweeps.{name}") for name in ("removal", "removal_base"))
    sources = list(base.runs())
    draws = {f"random_layers,draw {i}": order for i, order in enumerate(("2,1,3,0", "3,1,2,0", "0,2,1,3"), 1)}
    chosen("removal", sources, ORDERS | draws, repeats=2)
    sweep = load("removal")
    assert len(sweep.runs) <= 75 and {run.seed for run in sweep.runs} == {0, 1, 2}
    shares = {len(run.final_kwargs["mlp_layers"]) for run in sweep.runs}
    assert shares == {4, 8} and {removal.way_of(run) for run in sweep.runs} == set(study.WAYS)
    assert sum(len(run.final_kwargs["mlp_layers"]) == 8 for run in sweep.runs) == 3 * 5
    by_seed = {source.seed: source.signature for source in sources}
    assert all(run.initial_identity == f"run:{by_seed[run.seed]}" for run in sweep.runs)
    own = ("model_kwargs", "seed", "initial_checkpoint", "initial_identity", "distil_epochs", *dilution.FIELDS)
    recipes = {tuple((k, str(v)) for k, v in run.record().items() if k not in own) for run in sweep.runs}
    assert len(recipes) == 1  # one budget
    assert all(dilution.gone_from(run) in (0, 1) and run.epochs == 2 for run in sweep.runs)


def test_seeds_of_the_second_stage_are_pooled_and_ways_are_not(chosen):
    """Each heals from its own source, which is no condition."""
    sources = [SOURCE.but(seed=seed) for seed in (0, 1)]
    chosen("s", sources)
    ways = ("drop", "distil", "double", "linear")
    made = list(removal.runs("s", sources, ["cosine"], [50], ways, {"epochs": 4, "lr": 1e-3}, 2))
    names = rungs.names(made)
    assert len(set(names.values())) == len(ways)
    assert all(names[a.signature] == names[b.signature] for a, b in zip(made[:4], made[4:], strict=True))
    other = [*made, made[0].but(initial_identity="run:00000000")]  # the same seed from elsewhere
    assert len(set(rungs.names(other).values())) == 9


def test_one_command_writes_the_choices_that_the_study_reads(tmp_path, digits, monkeypatch, capsys):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path))
    file = tmp_path / "sources.py"
    fields = {"model": "deit_nano", "model_kwargs": {"depth": 3, "dim": 16}, "epochs": 1, "train_samples": 128}
    file.write_text(f'"""Sources."""\nfrom engine.run import Run\n\n\ndef runs():\n    yield Run(**{fields})\n')
    words = [str(file), "--study", "s", "-k", "1", "--resamples", "0", "--images", "64", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["choose_layers.py", *words, "--data-dir", str(digits)])
    with pytest.raises(Refusal, match="deit_nano-s0 is not finished; it comes first"):
        choose_layers.main()
    run = make_run(fields)
    train(run, store.folder_of(run), make_how({"data_dir": digits, "threads": 1}))
    choose_layers.main()
    assert "sweep.py plan s" in capsys.readouterr().out
    known, path = removal.table("s")
    assert {choice.source for choice in known} == {run.signature} and str(tmp_path) not in path.read_text()
    assert {"cosine", "token_entropy, greedy", "random_layers, draw 10"} <= {choice.label for choice in known}
    assert len(list(removal.runs("s", [run], ["cosine"], [50], ["distil"], {"epochs": 2}, 1))) == 1


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
