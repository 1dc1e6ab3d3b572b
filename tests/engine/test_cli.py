"""What a user mistypes gets one line on stderr that names the fix, and the exit code of its kind."""

import csv

import pytest
import timm

from engine.errors import CHECKPOINT, DATA, OUTPUT, USAGE
from tests import warm


def script(name, *args):
    return warm.run("-m", f"scripts.{name}", *args)


@pytest.mark.parametrize(
    "args, words",
    [
        (["train", "--modle", "x"], "unknown flag '--modle'; did you mean --model?"),
        (["train", "--batch_size", "3"], "did you mean --batch-size?"),
        (["train", "--optimizer", "sgd"], "--optimizer is called --opt here"),
        (["train", "--lr", "abc"], "lr 'abc'"),
        (["train", "--sched", "cosin"], "'cosine', 'constant'"),
        (["train", "--model", "mixer_s"], "close: mixer_s"),
        (["train", "--model-kwargs", "depth"], "--model-kwargs takes key=value, not 'depth'"),
        (["train", "--dataset", "cifar11"], "did you mean 'cifar10'?"),
        (["train", "--experiment", "../x"], "is no name for a folder"),
        (["train", "-c", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
        (["list_models", "mixr*"], "families: "),
        (["profile_model"], "name at least one model"),
        (["make_beton", "--dataset", "imagefolder/x"], "needs the size"),
        (["make_beton", "--dataset", "cifr10", "--img-size", "8"], "did you mean 'cifar10'?"),
    ],
)
def test_a_usage_mistake_is_one_line(args, words):
    done = script(*args)
    assert done.returncode == USAGE
    assert words in done.stderr
    assert done.stderr.startswith("softmlp: ") and done.stderr.count("\n") == 1 and not done.stdout


def test_a_mistake_in_a_recipe_names_its_line(tmp_path):
    (tmp_path / "r.yaml").write_text("lr: 1e-3\nepochs: 3\nmodle: mixer_nano\n")
    done = script("train", "-c", tmp_path / "r.yaml")
    assert done.returncode == USAGE and "r.yaml line 3: unknown key 'modle'; did you mean 'model'?" in done.stderr


def test_missing_data_name_the_command(tmp_path):
    done = script("train", "--dataset", "cifar10", "--model", "mixer_1m", "--data-dir", tmp_path, "--output", tmp_path)
    assert done.returncode == DATA
    assert "python scripts/make_beton.py --dataset cifar10 --img-size 32" in done.stderr


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    done = script("train", "--output", tmp_path / "file")
    assert done.returncode == OUTPUT and "choose another --output" in done.stderr


def test_train_validate_and_resume_from_the_command_line(tmp_path, digits):
    common = ["--data-dir", digits, "--output", tmp_path, "--threads", "1"]
    (tmp_path / "r.yaml").write_text("lr: 2e-3\nepochs: 9\nmodel_kwargs: {depth: 2, dim: 16}\n")
    first = script("train", "-c", tmp_path / "r.yaml", "--epochs", "2", "-b", "64", *common)
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert len(rows) == 2 and list(rows[0]) == ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
    again = script("train", "-c", folder / "args.yaml", *common)
    assert again.returncode == 0 and "epoch" not in again.stderr, "the finished run was trained again"

    table = tmp_path / "val.csv"
    for _ in range(2):
        checked = script("validate", folder, "--data-dir", digits, "--threads", "1", "--results-file", table)
        assert checked.returncode == 0, checked.stderr
    values = list(csv.DictReader(table.open()))
    assert len(values) == 2 and values[0] == values[1] and values[0]["samples"] == "500"
    assert float(values[0]["top1"]) == pytest.approx(float(rows[-1]["eval_top1"]), abs=1e-3)


def test_validate_refuses_what_is_no_checkpoint(tmp_path):
    (tmp_path / "last.pth.tar").write_text("hello")
    done = script("validate", tmp_path)
    assert done.returncode == CHECKPOINT and done.stderr.count("\n") == 1


def test_profile_writes_the_rows_it_prints(tmp_path):
    done = script("profile_model", "mixer_nano", "timm/resnet10t", "--no-speed", "--results-file", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    resnet = timm.create_model("resnet10t")
    assert [int(row["params"]) for row in rows] == [27_626, sum(weight.numel() for weight in resnet.parameters())]
    assert all(int(row["flops"]) == 2 * int(row["macs"]) for row in rows)
    assert "27,626" in done.stdout
