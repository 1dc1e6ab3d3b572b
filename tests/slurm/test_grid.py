"""Sweeps from the command line: what a grid spans, what is refused, and that its name finds it again."""

import pytest

from engine.errors import USAGE, Refusal
from slurm.define import load as sweeps
from slurm.define.grid import sweep_of
from slurm.define.sweep import DEFINITION


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def test_a_grid_is_every_combination_seeds_slowest():
    sweep = sweep_of(["lr=1e-3,3e-3", "seed=0,1", "weight_decay=0,0.05"], {"model": "mlp_nano", "epochs": "3"})
    assert [(run.seed, run.lr, run.weight_decay) for run in sweep.runs] == [
        (seed, lr, decay) for seed in (0, 1) for lr in (1e-3, 3e-3) for decay in (0.0, 0.05)
    ]
    assert {(run.model, run.epochs) for run in sweep.runs} == {("mlp_nano", 3)}
    assert sweep.question == "Grid over lr, seed, weight_decay" and sweep.dropped == 0


def test_one_value_may_be_a_list_a_word_null_or_a_timm_model():
    sweep = sweep_of(["opt_betas=[0.9,0.99],[0.9,0.95]", "arch=mlp_nano,timm/test_resnet", "aa=null,trivial"], {})
    assert len(sweep.runs) == 8
    assert {run.opt_betas for run in sweep.runs} == {(0.9, 0.99), (0.9, 0.95)}
    assert {run.model for run in sweep.runs} == {"mlp_nano", "timm/test_resnet"}
    assert {run.aa for run in sweep.runs} == {None, "trivial"}


def test_arguments_of_the_model_are_axes_too_and_repeats_are_dropped():
    sweep = sweep_of(["model_kwargs.depth=1,2,3"], {"model_kwargs": {"dim": 16}})
    assert [run.model_kwargs for run in sweep.runs] == [{"depth": 1, "dim": 16}, {"depth": 2, "dim": 16}, {"dim": 16}]
    assert sweep_of(["lr=1e-3,0.001,1.0e-3"], {}).dropped == 2


def test_the_same_runs_have_the_same_name():
    names = {
        sweep_of(["lr=1e-3,3e-3", "seed=0,1"], {}).name,
        sweep_of(["seed=1,0", "lr=0.003,0.001"], {}).name,
        sweep_of(["seed=1,0", "lr=0.003,0.001"], {"model": "mixer_nano"}).name,
    }
    assert len(names) == 1 and sweeps._NAME.fullmatch(names.pop())
    assert sweep_of(["lr=1e-3,3e-3", "seed=0,2"], {}).name not in names


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--grid is empty"),
        (["lr"], "--grid takes key=value,value and not 'lr'"),
        (["lr="], "--grid 'lr=': expected values"),
        (["lr=1,,2"], "expected values with commas"),
        (["lr=[1e-3"], "expected values with commas"),
        (["modle=mlp_nano"], "unknown key of a grid 'modle'; did you mean 'model'?"),
        (["weight-decay=0"], "did you mean 'weight_decay'?"),
        (["threads=1,2"], "threads changes no result"),
        (["lr=1e-3", "lr=3e-3"], "--grid names lr twice"),
        (["model=mlp_nano", "arch=mixer_nano"], "--grid names model twice"),
        (["epochs=3,9"], "epochs is given by --grid and by --epochs"),
        (["lr=1e-3,0"], "cell lr=0: lr 0: input should be greater than 0"),
        (["lr=1e-3,nan"], "cell lr=nan: lr"),
        (["model=mixer_nan"], "cell model=mixer_nan: .*close: mixer_nano"),
        (["model_kwargs.dept=3"], "did you mean 'depth'?"),
        (["model_kwargs=3"], "model_kwargs.depth=4,8"),
        (["warmup_epochs=2,4"], "cell warmup_epochs=4: .*longer than epochs 3"),
        ([f"seed={','.join(map(str, range(1000)))}", f"lr={','.join(map(str, range(1, 1001)))}"], "1,000,000 runs"),
    ],
)
def test_a_faulty_grid_is_refused_in_one_line(results, words, line):
    with pytest.raises(Refusal, match=line.replace("?", r"\?")) as refusal:
        sweep_of(words, {"epochs": 3})
    assert refusal.value.code == USAGE and "\n" not in str(refusal.value) and not results.exists()


def test_a_launched_grid_is_found_by_its_name():
    sweep = sweep_of(["lr=1e-3,3e-3", "opt_betas=[0.9,0.99],null"], {"model_kwargs": {"depth": 2}, "holdout": 0.1})
    with pytest.raises(Refusal, match=f"unknown sweep '{sweep.name}'"):
        sweeps.load(sweep.name)
    sweep.make_folder()
    assert sweeps.load(sweep.name) == sweep
    before = (sweep.folder / DEFINITION).stat().st_mtime_ns
    sweep.make_folder()
    assert (sweep.folder / DEFINITION).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text", ["", "grid: [lr=1e-3", "question: q\nfields: {}\n", "[1, 2]", "question: q\ngrid: 3\nfields: {}"]
)
def test_a_damaged_definition_is_one_line(text):
    sweep = sweep_of(["lr=1e-3,3e-3"], {})
    sweep.make_folder()
    (sweep.folder / DEFINITION).write_text(text)
    with pytest.raises(Refusal, match=r"sweep.yaml .*repeat the command") as refusal:
        sweeps.load(sweep.name)
    assert "\n" not in str(refusal.value)


def test_a_definition_that_gives_other_runs_is_refused():
    sweep = sweep_of(["lr=1e-3,3e-3"], {})
    sweep.make_folder()
    path = sweep.folder / DEFINITION
    path.write_text(path.read_text().replace("3e-3", "4e-3"))
    with pytest.raises(Refusal, match="other runs than those it was written for"):
        sweeps.load(sweep.name)


def test_a_file_goes_before_a_folder_of_its_name(results):
    folder = results / "demo"
    folder.mkdir(parents=True)
    (folder / DEFINITION).write_text("question: q\ngrid: [lr=1]\nfields: {}\n")
    assert len(sweeps.load("demo").runs) > 1 and sweeps.load("demo").definition is None
