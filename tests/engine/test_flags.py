"""Flags of timm and of the ancestors get a true answer, and help says what the tables say."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cli import timm_flags
from engine.cli.console import add_flags
from engine.cli.flags import Parser, add_fields
from engine.data.augment.policy import FORMS, parse
from engine.data.sets import DATASETS
from engine.errors import USAGE, Refusal
from engine.run import How, Run

ROOT = Path(__file__).parents[2]


def trainer() -> Parser:
    parser = Parser(prog="scripts/train.py")
    add_flags(parser)
    return parser


TRAINS = trainer()._option_string_actions


def run(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=ROOT)


def refusal(parser: Parser, flag: str) -> str:
    with pytest.raises(Refusal) as caught:
        parser.parse([flag])
    assert caught.value.code == USAGE and "\n" not in str(caught.value)
    return str(caught.value)


# --- timm -------------------------------------------------------------------------------------------------------------


def test_the_list_is_long_and_without_repetition():
    names = timm_flags.names()
    assert len(names) == len(set(names)) == 187
    assert {"--resume", "--pin-mem", "--lr", "data", "-vb", "--stop-epoch"} <= set(names)


@pytest.mark.parametrize("flag", timm_flags.names())
def test_every_flag_of_timm_is_here_or_answered(flag):
    if flag in TRAINS:
        assert timm_flags.answer(flag, TRAINS) is None, "a flag that is here is said to be missing"
    else:
        word = "/folder" if flag == "data" else flag
        line = refusal(trainer(), word)
        assert line.startswith(f"{word} is ") and "did you mean" not in line


@pytest.mark.parametrize("flag", [*timm_flags.ANSWERS, *timm_flags.RENAMED])
def test_an_answer_names_flags_that_are_there(flag):
    assert flag not in TRAINS
    words = (timm_flags.RENAMED.get(flag) or timm_flags.ANSWERS[flag]).replace(",", " ").replace(";", " ").split()
    named = [word for word in words if word.startswith("--")]
    elsewhere = {"--verify", "--tta", "--grid"}  # of the scripts that the line names
    assert all(word in TRAINS or word in elsewhere for word in named)


def test_no_answer_is_for_a_flag_that_nobody_has():
    own = set(timm_flags.names())
    ancestors = {"--act", "--normalization", "--drop-rate", "--reload", "--augment", "--save", "--lr-grid", "--wd-grid"}
    assert ancestors <= timm_flags.ANSWERS.keys() - own
    assert not set(timm_flags.ANSWERS) & set(timm_flags.RENAMED)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--resume", "x"], "--resume is not taken: repeat the command"),
        (["train", "--batch_size", "3"], "did you mean --batch-size?"),
        (["train", "--local_rank", "0"], "start with torchrun"),
        (["train", "--checkpoint_path", "x"], "--checkpoint_path is called --initial-checkpoint here"),
        (["train", "--data_path", "x"], "--data_path is called --data-dir here"),
        (["train", "--n_train", "3"], "--n_train is called --train-samples here"),
        (["train", "--no-augment"], "augmentation is off unless it is asked for"),
        (["train", "--lr-grid", "1"], "scripts/tune.py --grid lr=1e-3,1e-2"),
        (["finetune", "--body_learning_rate_multiplier", "1"], "is called --body-lr-scale here"),
        (["tune", "--arch", "mixer_nano", "--wd-grid", "1"], "scripts/tune.py --grid weight_decay=0,0.05"),
        (["sweep", "launch", "demo", "--pin-mem"], "--pin-mem is not taken: FFCV decodes"),
        (["sweep", "collect", "demo", "--seeds", "0-1"], "unknown flag '--seeds'; only plan, launch take it"),
        (["sweep", "launch", "demo", "--val_interval", "2"], "did you mean --val-interval?"),
        (["sweep", "plan", "demo", "--retry"], "unknown flag '--retry'; only launch takes it"),
        (["compare", "demo", "--resume"], "unknown flag '--resume'; see python scripts/compare.py --help"),
        (["validate", "x", "--num-classes", "3"], "unknown flag '--num-classes'; see python"),
    ],
)
def test_no_wrong_flag_is_guessed(words, line):
    done = run(f"scripts/{words[0]}.py", *words[1:])
    assert done.returncode == USAGE and line in done.stderr and done.stderr.count("\n") == 1


def test_the_table_is_printed_at_once():
    started = time.monotonic()
    done = run("-X", "importtime", "scripts/train.py", "--timm-flags")
    took = time.monotonic() - started
    rows = done.stdout.splitlines()[1:]
    assert done.returncode == 0 and [row.split()[0] for row in rows] == timm_flags.names()
    assert all(len(row.split()) > 1 for row in rows if row.split()[0] not in TRAINS)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "timm", "ffcv", "numpy"}
    assert took < 10, "a machine under load; on an idle one 0.3 s"


def test_the_list_is_that_of_timm():
    """Against the source of train.py, which no package holds: SOFTMLP_TIMM_SOURCE names a checkout."""
    source = os.environ.get("SOFTMLP_TIMM_SOURCE")
    if not source:
        pytest.skip("SOFTMLP_TIMM_SOURCE names no checkout of timm")
    calls = [
        node
        for node in ast.walk(ast.parse((Path(source) / "train.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    ]
    theirs = {word.value for call in calls for word in call.args if isinstance(word, ast.Constant)}
    assert theirs <= set(timm_flags.names()), "timm has new flags: add them to timm_flags.txt, and answers"


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_names_every_data_set_and_policy():
    done = run("scripts/train.py", "--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and all(name in text for name in DATASETS)
    for form in ("rand-m9-n2-mstd0.5-inc1", "trivial", "ta_wide", "autoaug", "original", "v0r", "cifar10"):
        assert form in FORMS and form in text and parse(form)


def test_every_field_has_a_flag_and_help():
    parser = Parser()
    add_fields(parser, Run)
    add_fields(parser, How)
    text = " ".join(parser.format_help().split())
    for kind in (Run, How):
        for name, field in kind.model_fields.items():
            if name == "scheme":  # kept with a run, never chosen
                continue
            flag = f"--{name.replace('_', '-')}"
            assert flag in parser._option_string_actions and flag in text and field.description


# --- tune -------------------------------------------------------------------------------------------------------------


def test_a_recipe_that_names_its_model_needs_no_arch(monkeypatch):
    from scripts import tune

    monkeypatch.setattr(sys, "argv", ["tune.py", "-c", "rank_pruning_two"])
    asked, _ = tune.search_of(tune.parse())
    assert asked.models == ("mlp_two",) and asked.fields["holdout"] == 0.2 and "lr" not in asked.fields
    monkeypatch.setattr(sys, "argv", ["tune.py", "-c", "rank_pruning_two", "--arch", "mlp_nano", "mixer_nano"])
    assert tune.search_of(tune.parse())[0].models == ("mlp_nano", "mixer_nano")
    monkeypatch.setattr(sys, "argv", ["tune.py", "--dataset", "digits"])
    with pytest.raises(Refusal, match="say which models to tune: --arch"):
        tune.search_of(tune.parse())


def test_arguments_of_a_model_add_up_and_are_typed(monkeypatch):
    from engine.cli.flags import collect

    words = ["--model", "deit_nano", "--model-kwargs", "dim=16", "--model-kwargs", "mlp_layers=0,1", "mlp_ratio=2e0"]
    made, _ = collect(trainer().parse(words))
    assert made.model_kwargs == {"dim": 16, "mlp_layers": [0, 1], "mlp_ratio": 2}
    made, _ = collect(trainer().parse(["--model", "deit_nano", "--model-kwargs", "mlp_layers=0"]))
    assert made.model_kwargs == {"mlp_layers": [0]}
    with pytest.raises(Refusal, match="--model-kwargs gives dim twice"):
        collect(trainer().parse(["--model-kwargs", "dim=16", "--model-kwargs", "dim=32"]))


def test_the_loader_of_an_older_command_is_no_error(capsys):
    assert "loader" not in vars(trainer().parse(["--loader", "memory"]))
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "FFCV loads always" in err
    with pytest.raises(SystemExit):
        trainer().parse(["--help"])
    assert "--loader" not in capsys.readouterr().out
