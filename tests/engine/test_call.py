"""From Python: three lines train a model and give its result as a value; mistakes are one line there, too."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import engine
from engine.data import loaders, normalize
from engine.errors import DATA, USAGE, Refusal
from engine.folder import store
from engine.run import make_how, make_run

SHORT = {"model": "mixer_nano", "epochs": 2, "train_samples": 256, "lr": 4e-3}


@pytest.fixture(scope="module")
def given(digits, tmp_path_factory):
    return {"output": tmp_path_factory.mktemp("results"), "data_dir": digits, "threads": 1}


@pytest.fixture(scope="module")
def result(given):
    return engine.train_run(**SHORT, **given)


def test_a_call_trains_what_the_command_trains_and_returns_it(result, given):
    """The very folder that the command would have written and read: the run's signature, and its files."""
    assert result.run == make_run(SHORT) and result.folder == store.folder_of(result.run, given["output"])
    assert [row["epoch"] for row in result.history] == [0, 1]
    assert result.acc1 == store.read_status(result.folder)["acc1"] == result.history[-1]["eval_top1"]
    found = result.predictions
    assert found.label.shape == (500,) and found.acc1 == pytest.approx(result.acc1, abs=1e-3)


def test_the_model_is_the_one_that_was_judged(result, given):
    _, val, facts = loaders.make_loaders(result.run, make_how({"data_dir": given["data_dir"]}))
    prepare = normalize.make_prepare(result.run, facts, torch.device("cpu"))
    model = result.model()
    assert not model.training
    with torch.inference_mode():
        guesses = np.concatenate([model(prepare(x)).argmax(1).numpy() for x, _ in val.epoch(0)])
    assert (guesses == result.predictions.prediction).mean() > 0.99


def test_a_second_call_trains_nothing_and_says_the_same(result, given):
    before = (result.folder / "last.pth.tar").stat().st_mtime_ns
    again = engine.train_run(result.run, **given)
    assert again == result and (result.folder / "last.pth.tar").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"modle": "mixer_nano"}, "unknown key 'modle'; did you mean 'model'"),
        ({"model": "mixer_nan"}, "unknown model 'mixer_nan'; close: mixer_nano"),
        ({"lr": -1}, "lr -1: input should be greater than 0"),
        ({"model": "mixer_nano", "model_kwargs": {"dpth": 3}}, "mixer_nano has no argument 'dpth'"),
    ],
)
def test_a_mistake_in_a_run_as_a_value_is_one_line(fields, words):
    with pytest.raises(Refusal, match=words) as refusal:
        engine.Run(**fields)
    assert "\n" not in str(refusal.value) and refusal.value.code == USAGE


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"modle": "mixer_nano"}, "unknown field 'modle'; did you mean 'model'"),
        ({"model": "mixer_nan"}, "mixer_nano"),
        ({"lr": -1}, "lr -1"),
        ({"batch_size": 5000}, "batch_size 5000 is more than"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(fields, words, given, tmp_path):
    with pytest.raises(Refusal, match=words) as refusal:
        engine.train_run(**{**SHORT, "train_samples": None, **fields}, **{**given, "output": tmp_path})
    assert "\n" not in str(refusal.value) and not any((tmp_path / "runs").glob("*"))


def test_data_that_are_missing_are_named_with_the_command(given, tmp_path):
    with pytest.raises(Refusal, match=r"make_beton.py --dataset cifar10") as refusal:
        engine.train_run(model="mixer_1m", dataset="cifar10", **{**given, "data_dir": tmp_path, "output": tmp_path})
    assert refusal.value.code == DATA


def test_a_run_takes_no_fields_of_its_own_beside_it(given):
    with pytest.raises(Refusal, match="unknown field 'lr'"):
        engine.train_run(make_run(SHORT), lr=1e-3, **given)


def test_importing_the_room_imports_nothing_heavy():
    code = "import engine, sys\nassert not {'torch', 'timm', 'ffcv', 'numpy', 'pydantic'} & {*sys.modules}\n"
    code += "assert engine.Run is __import__('engine.run').run.Run and 'torch' not in sys.modules\n"
    code += "try:\n    engine.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)"
    subprocess.run([sys.executable, "-c", code], check=True)
