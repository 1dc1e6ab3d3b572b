"""Tuning: spaces, searches that go on after a kill, winners and their warnings, the map, and the script as a whole."""

import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli.flags import Parser, add_fields, collect
from engine.errors import BUSY, USAGE, Refusal
from engine.folder import store
from engine.run import How, Run
from slurm.define import grid, halving, tune
from slurm.define import load as sweeps
from slurm.define import search as spaces
from slurm.define.search import Range, Search
from slurm.queue import claims, worker
from tests import warm

ROOT = Path(__file__).parents[2]
FIELDS = {"holdout": 0.1, "epochs": 30, "warmup_epochs": 3}
SPACE = ("lr=1e-5:1e-1", "weight_decay=0,0.05")


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def asked(kind: str = "random", words=SPACE, **changes) -> Search:
    return replace(Search(("mixer_nano", "mlp_nano"), FIELDS, tuple(words), kind, 9), **changes)


def accuracy(run: Run) -> float:
    """A law with its best at lr 10^-2.5; longer is better."""
    return 90 - 5 * (math.log10(run.lr) + 2.5) ** 2 - 30 / run.epochs


class Laboratory:
    """Writes what training would leave in the folders of runs; `budget` runs, then it is killed."""

    def __init__(self, budget: float = math.inf) -> None:
        self.budget, self.trained = budget, []

    def __call__(self, sweep) -> list[dict]:
        sweep.make_folder()
        for run, folder in zip(sweep.runs, sweep.folders, strict=True):
            if worker.ended(worker.look(folder)):
                continue
            if len(self.trained) >= self.budget:
                raise KeyboardInterrupt
            self.trained.append(run)
            store.make_folder(run, folder)
            end = {"state": "failed"} if run.lr > 3e-2 else {"state": "done", "acc1": accuracy(run)}
            store.write_json(folder / "status.json", end, durable=False)
        return [worker.look(folder) for folder in sweep.folders]


# --- spaces -----------------------------------------------------------------------------------------------------------


def test_a_space_has_values_and_ranges():
    assert spaces.parse(["lr=1e-4:1e-2", "batch_size=16:64"], "random") == {
        "lr": Range(1e-4, 1e-2, False),
        "batch_size": Range(16, 64, True),
    }
    assert spaces.parse(["lr=1e-4,1e-2"], "random") == {"lr": [1e-4, 1e-2]}
    assert [Range(1e-4, 1e-2, False).at(share) for share in (0, 0.5, 1)] == [1e-4, 1e-3, 1e-2]
    assert Range(16, 64, True).at(0.5) == 32


@pytest.mark.parametrize(
    ("search", "line"),
    [
        (asked("grid"), "a grid needs values"),
        (asked(words=["lr=1e-2:1e-4"]), "LOW:HIGH with 0 < LOW < HIGH"),
        (asked(words=["lr=0:1e-4"]), "LOW:HIGH with 0 < LOW < HIGH"),
        (asked(words=["lr=a:b"]), "LOW:HIGH with 0 < LOW < HIGH"),
        (asked(words=["wd=0.1:0.2"]), "unknown key of a grid 'wd'"),
        (asked(words=["lr=1e-4:1e-2", "lr=1e-3,1e-2"]), "names a field twice"),
        (asked(words=["epochs=3,4"]), "epochs cannot be tuned"),
        (asked(words=["model=mlp_nano"]), "model cannot be tuned"),
        (asked(words=["holdout=0.1,0.2"]), "holdout cannot be tuned"),
        (asked(words=["warmup_epochs=1,2"]), "is given by --grid and by --warmup-epochs"),
        (asked(words=["seed=0,1"]), "draws each point once"),
        (asked(fields={"epochs": 3}), "tuning without --holdout would choose by the test images"),
        (asked(fields={"epochs": 3, "holdout": 0}), "tuning without --holdout"),
        (asked(models=("mixer_nan",)), "close: mixer_nano"),
        (asked(words=["model_kwargs.token_ratio=0.5,1"]), "mlp_nano has no argument 'token_ratio'"),
    ],
)
@pytest.mark.parametrize("kind", [None, "optuna"])
def test_a_faulty_search_is_refused_before_anything_is_written(results, search, line, kind):
    if kind and search.kind == "random":
        search = replace(search, kind=kind)
    with pytest.raises(Refusal, match=re.escape(line)) as refusal:
        tune.search(search, Laboratory())
    assert refusal.value.code == USAGE and "\n" not in str(refusal.value) and not results.exists()


def test_the_defaults_are_the_grids_of_rank_pruning():
    space = spaces.parse(spaces.GRID, "grid")
    assert [float(value) for value in space["lr"]] == [5e-2, 1e-2, 5e-3, 1e-3, 5e-4, 1e-4]
    assert [float(value) for value in space["weight_decay"]] == [10.0**-power for power in range(5, 11)]
    for key, span in spaces.parse(spaces.RANGES, "random").items():
        values = [float(value) for value in space[key]]
        assert (span.low, span.high) == (min(values), max(values))


# --- searches ---------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_model_in_every_cell():
    search = asked("grid", ["lr=1e-3,1e-2", "seed=0,1"])
    sweep, statuses = tune.search(search, lab := Laboratory())
    assert len(lab.trained) == len(statuses) == 8 and all(run.holdout == 0.1 for run in sweep.runs)
    assert sorted({(run.model, run.lr, run.seed) for run in sweep.runs}) == sorted(
        (model, lr, seed) for model in search.models for lr in (1e-3, 1e-2) for seed in (0, 1)
    )
    assert sweeps.load(sweep.name) == sweep, "status and collect know it by name"
    again, _ = tune.search(search, lab)
    assert again == sweep and len(lab.trained) == 8, "nothing is trained twice"


def test_a_random_search_is_seeded_log_uniform_and_the_same_for_all_models():
    many = spaces.points(asked(trials=2000))
    rates = sorted(cell["lr"] for cell in many if cell["model"] == "mlp_nano")
    assert [cell["lr"] for cell in many[::2]] == [cell["lr"] for cell in many[1::2]]
    # log10 lr is uniform on [-5, -1]: Kolmogorov's distance of 2000 draws is below 0.0363 with probability 99 %.
    distance = max(abs((math.log10(lr) + 5) / 4 - i / 2000) for i, lr in enumerate(rates))
    assert distance < 0.0363 and rates[0] >= 1e-5 and rates[-1] <= 1e-1
    zeros = sum(cell["weight_decay"] == 0 for cell in many) / len(many)
    assert abs(zeros - 0.5) < 0.04
    assert spaces.points(asked(trials=5)) == many[:10], "more trials go on with the search"
    assert asked(trials=5).name == asked(trials=6).name != asked(seed=1).name
    assert spaces.points(asked(trials=5, seed=1))[0] != many[0]


def test_lengths_shrink_by_thirds_with_their_schedules():
    assert [halving.lengths(epochs) for epochs in (1, 2, 9, 30)] == [[1], [1, 2], [1, 3, 9], [3, 10, 30]]
    run = Run(epochs=30, warmup_epochs=3, cooldown_epochs=4)
    assert halving.shortened(run, 30) == {"epochs": 30}
    short = run.but(**halving.shortened(run, 10))
    assert (short.epochs, short.warmup_epochs, short.cooldown_epochs) == (10, 1, 1)
    run = Run(epochs=30, warmup_epochs=3, sched="step", decay_epochs=6)
    short = run.but(**halving.shortened(run, 10))
    assert (short.epochs, short.warmup_epochs, short.decay_epochs) == (10, 1, 2)


def trials(search: Search) -> dict[str, list]:
    """What the journal says, read by a process of its own."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = store.results_dir() / search.name
    storage = JournalStorage(JournalFileBackend(str(folder / halving.JOURNAL)))
    return {model: optuna.load_study(study_name=model, storage=storage).trials for model in search.models}


def told(search: Search) -> list[tuple]:
    return [
        (model, trial.number, trial.state.name, trial.params, trial.values, trial.intermediate_values)
        for model, found in trials(search).items()
        for trial in found
    ]


def test_halving_trains_all_of_a_round_a_little_and_the_best_to_the_end():
    search = asked("optuna", trials=18)
    sweep, _ = tune.search(search, lab := Laboratory())
    for model, found in trials(search).items():
        lengths = [run.epochs for run in lab.trained if run.model == model]
        assert lengths.count(3) == 18 and lengths.count(30) == 2 and 2 <= lengths.count(10) <= 6
        states = [trial.state.name for trial in found]
        assert len(states) == 18 and states.count("COMPLETE") == 2 and "RUNNING" not in states
        for trial in found:
            diverged = spaces.round_to(trial.params["lr"]) > 3e-2
            assert (trial.state.name == "FAIL") == diverged
            for epochs, value in trial.intermediate_values.items():
                assert value == accuracy(Run(lr=spaces.round_to(trial.params["lr"]), epochs=epochs))
        for number in (0, 1):  # who went to the end had been the best of the round
            ranked = [trial for trial in found if trial.user_attrs["round"] == number and trial.intermediate_values]
            best = max(ranked, key=lambda trial: trial.intermediate_values[3])
            assert best.state.name == "COMPLETE"
    assert sweeps.load(sweep.name).runs == sweep.runs
    before = told(search)
    assert tune.search(search, lab)[0].runs == sweep.runs and told(search) == before
    count = len(lab.trained)
    tune.search(replace(search, trials=20), lab)
    assert told(search)[:18] == before[:18] and len(trials(search)["mlp_nano"]) == 20 and len(lab.trained) > count


@pytest.mark.parametrize("budget", [0, 3, 20, 25])
def test_a_killed_search_goes_on_as_if_it_had_not_been_killed(budget, tmp_path, monkeypatch):
    search = asked("optuna", trials=12)
    tune.search(search, whole := Laboratory())
    expected = told(search)
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "again"))
    with pytest.raises(KeyboardInterrupt):
        tune.search(search, first := Laboratory(budget))
    folder = store.results_dir() / search.name
    with (folder / halving.JOURNAL).open("a") as file:
        file.write('{"op_code":4,"work')  # killed while it wrote
    (folder / f"{halving.JOURNAL}.lock").symlink_to("nobody")
    tune.search(search, second := Laboratory())
    assert told(search) == expected
    both = {run.signature for run in first.trained} | {run.signature for run in second.trained}
    assert both == {run.signature for run in whole.trained}
    assert len(first.trained) + len(second.trained) == len(whole.trained), "nothing is trained twice"


def test_a_trial_asked_for_by_a_process_that_died_is_no_stale_one():
    search = asked("optuna", trials=9)
    with pytest.raises(KeyboardInterrupt):
        tune.search(search, Laboratory(0))
    (study, _) = halving._open(search, store.results_dir() / search.name / halving.JOURNAL)
    study.ask()  # and then it died
    tune.search(search, Laboratory())
    states = [trial.state.name for trial in trials(search)["mixer_nano"]]
    assert states.count("FAIL") >= 1 and "RUNNING" not in states and len(states) == 10


def test_a_launcher_that_returns_early_is_not_waited_for():
    search = asked("optuna")

    def submit(sweep):
        sweep.make_folder()
        return [worker.look(folder) for folder in sweep.folders]

    sweep, statuses = tune.search(search, submit)
    assert {status["state"] for status in statuses} == {"planned"} and {run.epochs for run in sweep.runs} == {3}


def test_a_search_on_a_cluster_goes_on_to_its_end_by_itself(monkeypatch):
    """Launches return at once, jobs train meanwhile; one batch of them is lost, and launched again."""
    monkeypatch.setattr(tune, "POLL_SECONDS", 0.0)
    search, lab = asked("optuna", trials=18), Laboratory()
    launched, lost, said = [], [], []

    def submit(sweep):
        sweep.make_folder()
        launched.append(sweep)
        return [worker.look(folder) for folder in sweep.folders]

    def live(sweep):
        if len(launched) == 2 and not lost:
            lost.append(sweep)
            return False
        lab(sweep)  # the jobs train
        return False

    _, statuses = tune.search(search, tune.waiting(submit, live, said.append))
    assert all(map(worker.ended, statuses)) and lost and len(launched) >= 7, "three steps of two rounds, and one again"
    expected = told(search)
    assert not any(state == "RUNNING" for _, _, state, *_ in expected) and len(expected) == 36
    assert len(lab.trained) == len({run.signature for run in lab.trained}) and said
    useless = tune.waiting(submit, lambda sweep: False, said.append)
    launched.clear()
    useless(replace(search, seed=5).sweep(spaces.points(replace(search, kind="random", trials=1, seed=5))))
    assert len(launched) == tune.MAX_LAUNCHES, "what gains nothing is left to its user"


def test_two_processes_do_not_tune_the_same():
    folder = store.results_dir() / asked("optuna").name
    folder.mkdir(parents=True)
    with claims.hold(folder / "tune.lock"), pytest.raises(Refusal, match="by another process") as refusal:
        tune.search(asked("optuna"), Laboratory())
    assert refusal.value.code == BUSY


def test_optuna_is_optional(monkeypatch, results):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Refusal, match="pip install optuna"):
        tune.search(asked("optuna"), Laboratory())
    assert not results.exists()


# --- the script -------------------------------------------------------------------------------------------------------


def script(*words: str) -> subprocess.CompletedProcess:
    return warm.run(ROOT / "scripts/tune.py", *words, cwd=ROOT)


def test_tuning_for_real_ends_with_the_line_to_train_with(digits, results):
    words = ["--arch", "mixer_nano", "--model-kwargs", "depth=1", "--train-samples", "256", "--epochs", "2"]
    words += ["--data-dir", str(digits), "--cluster", "debug", "--grid", "lr=1e-4,1e-2,1e30", "weight_decay=0,0.05"]
    done = script(*words, "--train-epochs", "5", "--threads", "1")
    assert done.returncode == 0, done.stderr
    (folder,) = results.glob("tune_*")
    sweep = sweeps.load(folder.name)
    ended = [worker.look(path) for path in sweep.folders]
    assert [status["state"] for status in ended].count("failed") == 2 and len(ended) == 6
    scores = [status["acc1"] if status["state"] == "done" else -1 for status in ended]
    winner = sweep.runs[scores.index(max(scores))]
    assert f"lr={winner.lr:g} weight_decay={winner.weight_decay:g}" in done.stdout
    assert (folder / "figures/tuning-mixer_nano.svg").exists() and (folder / "tuning.csv").exists()
    parser = Parser()
    add_fields(parser, Run)
    add_fields(parser, How)
    line = next(line for line in done.stdout.splitlines() if line.startswith("  python scripts/train.py"))
    run, how = collect(parser.parse(shlex.split(line)[2:]))
    assert run == winner.but(holdout=0, epochs=5) and how.threads == 1
    held = store.read_json(sweep.folders[0] / "env.json")
    assert "train" in held["data_file"], "the file with the test images was not opened"
    again = script(*words, "--train-epochs", "5", "--threads", "1")
    assert again.returncode == 0 and [worker.look(path) for path in sweep.folders] == ended, "nothing is trained twice"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--arch", "mixer_nano", "--holdout", "0"), "tuning without --holdout"),
        (("--arch", "mixer_nano", "--search", "rnd"), "invalid choice: 'rnd'"),
        (("--arch", "mixer_nano", "--trials", "0"), "--trials: '0' is not a whole number from 1"),
        (("--arch", "mixer_nan"), "close: mixer_nano"),
        (("--grid", "lr=1"), "--arch"),
        (("--arch", "mixer_nano", "--lr", "1e-3"), "lr is given by --grid and by --lr"),
    ],
)
def test_a_mistake_is_one_line(words, line, results):
    done = script(*words)
    assert done.returncode == USAGE and line in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout and not results.exists()


def test_an_axis_of_the_model_reads_back():
    run = grid.run_of({}, {"model": "mixer_nano", "model_kwargs.depth": 2})
    assert spaces.value_of(run, "model_kwargs.depth") == 2 and spaces.value_of(run, "lr") == 1e-3
