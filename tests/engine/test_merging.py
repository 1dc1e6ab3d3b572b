"""Merging trained with, or applied after: always said which, and never taken for another model's weights."""

import pytest

from engine.errors import Refusal
from engine.run import make_run
from engine.train import train
from scripts import validate
from scripts.bench import merging

FIELDS = {"model": "deit_nano", "train_samples": 330, "batch_size": 64, "epochs": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, digits):
    """A run without and one with merging."""
    from engine.run import make_how

    made = {}
    for r in (0, 4):
        folder = made[r] = tmp_path_factory.mktemp("run")
        kwargs = {"merge_r": r, "merge_start": 1} if r else {}
        train(make_run({**FIELDS, "model_kwargs": kwargs}), folder, make_how({"data_dir": digits, "threads": 1}))
    return made


def judge(folder, digits, monkeypatch, capsys, *words):
    command = ["validate.py", str(folder), "--data-dir", str(digits), "--threads", "1", *words]
    monkeypatch.setattr("sys.argv", command)
    validate.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("trained", "words", "said"),
    [
        (0, [], "model deit_nano  dataset"),
        (
            0,
            ["merge_r=4", "merge_start=1"],
            "deit_nano merge_r=4 merge_start=1  merging after training with whole tokens",
        ),
        (4, [], "deit_nano merge_r=4 merge_start=1  merging trained with it"),
        (4, ["merge_r=2"], "deit_nano merge_r=2 merge_start=1  merging after training with merge_r=4"),
        (4, ["merge_r=0", "merge_start=0"], "model deit_nano  dataset"),
    ],
)
def test_the_row_says_whether_it_was_trained_so(folders, digits, monkeypatch, capsys, trained, words, said):
    out = judge(folders[trained], digits, monkeypatch, capsys, *(["--model-kwargs", *words] if words else []))
    assert said in out and "top1" in out


def test_merging_after_training_changes_the_figures(folders, digits, monkeypatch, capsys):
    """By a little, and the same weights with the same arguments give the same."""
    plain, merged = (
        judge(folders[0], digits, monkeypatch, capsys, *words).partition("loss ")[2].split()[0]
        for words in ([], ["--model-kwargs", "merge_r=6"])
    )
    assert plain != merged and abs(float(plain) - float(merged)) < 0.1


def test_arguments_that_weights_depend_on_stay_the_files(folders, digits, monkeypatch, capsys):
    for words in (["--model-kwargs", "dim=16"], ["--model-kwargs", "merge_r=1", "depth=1"], ["--model", "deit_nano"]):
        with pytest.raises(Refusal, match="says what it is; leave out --model"):
            judge(folders[0], digits, monkeypatch, capsys, *words)


def test_weights_trained_whole_start_a_training_that_merges(folders, how, tmp_path):
    fields = {**FIELDS, "model_kwargs": {"merge_r": 3}, "initial_checkpoint": str(folders[0])}
    run = make_run(fields)
    train(run, tmp_path / "a", how)
    assert run.rung == "deit_nano merge_r=3"
    train(make_run({**FIELDS, "initial_checkpoint": str(folders[4])}), tmp_path / "b", how)


def test_the_bench_finds_where_merging_pays(monkeypatch, capsys, tmp_path):
    words = ["deit_nano", "--model-kwargs", "depth=2", "patch_size=4", "--img-size", "16", "96", "-b", "1", "4"]
    words += ["--rounds", "2", "--results-file", str(tmp_path / "x.csv")]
    monkeypatch.setattr("sys.argv", ["merging.py", *words])
    merging.main()
    out = capsys.readouterr().out
    assert out.count("batch 1: ") == out.count("batch 4: ") == 1
    header, *lines = (tmp_path / "x.csv").read_text().splitlines()
    assert header.startswith("model,tokens,batch_size,share,r,speedup,") and len(lines) == 4
    assert [[line.split(",")[i] for i in (1, 2, 4)] for line in lines] == [
        [n, b, r] for n, r in (("17", "7"), ("577", "231")) for b in "14"
    ]


def test_the_crossover_is_the_first_of_an_unbroken_row():
    def rows(*speeds):
        return [{"tokens": 10 * i, "speedup_q1": speed} for i, speed in enumerate(speeds, 1)]

    assert merging.crossover(rows(0.5, 1.2, 1.5), 8) == "batch 8: faster from 20 tokens on, of those measured"
    assert merging.crossover(rows(1.2, 0.9, 1.5), 8) == "batch 8: faster from 30 tokens on, of those measured"
    assert merging.crossover(rows(1.2, 0.9, 1.0), 8) == "batch 8: not faster up to 30 tokens"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mixer_nano", "--model-kwargs", "patch_size=4"], "mixer_nano has no argument 'merge_r'"),
        (["deit_nano", "--merge-start", "2"], "--merge-start 2: no layer with attention is left"),
        (["deit_nano", "--img-size", "33"], "img_size 33 is not a multiple"),
    ],
)
def test_the_bench_refuses_in_one_line(monkeypatch, words, said):
    monkeypatch.setattr("sys.argv", ["merging.py", *words, "--rounds", "2"])
    with pytest.raises(Refusal, match=said):
        merging.main()
