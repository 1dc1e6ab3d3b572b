"""A run is a value: canonical types, a pinned signature, one line for every mistake."""

import pytest

from engine.errors import USAGE, Refusal
from engine.run import Run, make_run, read_yaml

# If this changes, every result made before would be trained again: a new field belongs in engine.run.LATER.
GOLDEN = "73632c8c"


def test_golden_signature():
    assert Run().signature == GOLDEN


def test_equal_values_are_the_same_run():
    spelled = {
        "epochs": 30.0,
        "lr": "1e-3",
        "img_size": 8,
        "momentum": 0.9,
        "model_kwargs": {"depth": 3.0, "dim": 32},
        "warmup_epochs": 0,
    }
    assert make_run(spelled) == Run()
    assert make_run(spelled).signature == GOLDEN


@pytest.mark.parametrize("field, value", [("seed", 1), ("lr", 2e-3), ("model_kwargs", {"depth": 4}), ("amp", True)])
def test_what_decides_the_result_changes_the_signature(field, value):
    assert Run().but(**{field: value}).signature != GOLDEN


def test_a_run_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Run().lr = 1.0


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"model": "mixr_nano"}, "mixer_nano"),
        ({"dataset": "cifar"}, "did you mean 'cifar10'"),
        ({"model_kwargs": {"dpeth": 3}}, "did you mean 'depth'"),
        ({"model_kwargs": {"img_size": 16}}, "img_size"),
        ({"model_kwargs": 3}, "key: value"),
        ({"lr": 0}, "lr 0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"epochs": 1.5}, "epochs 1.5"),
        ({"opt": "adma"}, "adamw"),
        ({"warmup_epochs": 31}, "are longer than epochs 30"),
        ({"opt": "sgd", "momentum": 0}, "Nesterov"),
        ({"scale": [0.5, 1], "crop_pad": 4}, "leave one out"),
        ({"amp_dtype": "float16"}, "does nothing without amp"),
        ({"sched": "triangular", "warmup_epochs": 1}, "by itself"),
        ({"layer_decay": 0.5, "mode": "linear"}, "layer_decay"),
        ({"opt": "sgd", "opt_betas": [0.9, 0.95]}, "no meaning"),
        ({"dataset": "imagefolder/cats"}, "needs an img_size"),
        ({"model": "mlp_nano", "drop_path": 0.1}, "no argument 'drop_path'"),
    ],
)
def test_a_mistake_is_one_line(fields, words):
    with pytest.raises(Refusal) as caught:
        make_run(fields)
    assert caught.value.code == USAGE
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("model: mixer_nano\nmodle: x\n", "line 2: unknown key 'modle'; did you mean 'model'?"),
        ("lr: 1e-3\nlr: 1e-2\n", "line 2: key 'lr' was given in line 1"),
        ("lr: [1\n", "line 2: not YAML"),
        ("- a\n", "expected 'key: value'"),
    ],
)
def test_a_mistake_in_yaml_names_file_and_line(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(Refusal) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and words in str(caught.value)
