"""A run is a value: canonical types, a pinned signature, one line for every mistake."""

import hashlib

import pytest

from engine.data.augment.policy import canonical, parse
from engine.errors import USAGE, Refusal
from engine.run import Run, make_run, read_yaml

RAISE = "a default or the form of the signature was changed: raise SCHEME in engine/run.py, then pin these values anew"
GOLDEN = "f5aa40b0"
PINNED = {
    GOLDEN: {},
    "a738a90e": {"seed": 7, "lr": 3e-3, "warmup_epochs": 2, "smoothing": 0.1, "amp": True},
    "aa7445f9": {"model": "vip_1m", "model_kwargs": {"patch_size": 8, "depth": [4], "dim": [88]}, "dataset": "cifar10"},
    "368aca43": {
        "model": "deit_1m",
        "dilute_layers": "0,2/4",
        "dilute_epochs": 4,
        "dilute_by": "step",
        "best_from": 20,
    },
    "f8688025": {
        "initial_checkpoint": "x.pth",
        "initial_identity": "sha256:0123456789abcdef",
        "opt_betas": [0.9, 0.95],
    },
}
DEFAULTS = {
    "scheme": 2,
    "model": "mixer_nano",
    "model_kwargs": {},
    "dataset": "digits",
    "img_size": None,
    "stored_size": None,
    "train_samples": None,
    "seed": 0,
    "epochs": 30,
    "batch_size": 128,
    "grad_accum_steps": 1,
    "opt": "adamw",
    "lr": 0.001,
    "momentum": 0.9,
    "opt_eps": None,
    "layer_decay": None,
    "opt_betas": None,
    "weight_decay": 0.05,
    "clip_grad": 0.0,
    "sched": "cosine",
    "decay_epochs": 30.0,
    "decay_rate": 0.1,
    "cooldown_epochs": 0,
    "warmup_epochs": 0.0,
    "warmup_lr": 0.0,
    "min_lr": 0.0,
    "bce_loss": False,
    "smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
    "scale": None,
    "ratio": (0.75, 4 / 3),
    "aa": None,
    "color_jitter": 0.0,
    "reprob": 0.0,
    "remode": "const",
    "crop_pad": 0,
    "crop_fill": "zeros",
    "crop_step": 1,
    "hflip": 0.0,
    "aug_repeats": 0,
    "permute": "none",
    "holdout": 0.0,
    "model_ema": False,
    "model_ema_decay": 0.999,
    "model_ema_warmup": False,
    "dilute_layers": None,
    "dilute_epochs": None,
    "dilute_sched": "linear",
    "dilute_by": "epoch",
    "prune_by": None,
    "prune_share": 0.0,
    "prune_rewind": False,
    "distil_epochs": None,
    "strictness_to": None,
    "strictness_epochs": None,
    "strictness_sched": "linear",
    "penalty": None,
    "penalty_weight": None,
    "penalty_beta": 50.0,
    "penalty_kernel_size": None,
    "penalty_stride": 1,
    "best_from": None,
    "mode": "full",
    "body_lr_scale": 1.0,
    "initial_checkpoint": None,
    "initial_identity": None,
    "amp": False,
    "amp_dtype": "bfloat16",
}


@pytest.mark.parametrize("signature", PINNED)
def test_golden_signatures(signature):
    assert make_run(PINNED[signature]).signature == signature, RAISE


def test_golden_defaults():
    assert Run.model_fields.keys() == DEFAULTS.keys(), "pin the default of a new field, too; it must mean: as before"
    assert {key: field.default for key, field in Run.model_fields.items()} == DEFAULTS, RAISE


def test_the_signature_is_the_hash_of_what_differs_from_the_defaults():
    """By hand, so that another program can find a run's folder."""
    text = '{"amp":true,"epochs":5,"img_size":8,"lr":0.002,"opt_betas":[0.9,0.95],"scheme":2}'
    run = make_run({"amp": True, "epochs": 5.0, "lr": 2e-3, "opt_betas": (0.9, 0.95), "seed": 0})
    assert run.signature == hashlib.sha256(text.encode()).hexdigest()[:8]


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


@pytest.mark.parametrize(
    "fields",
    [
        {"model_kwargs": {"token_ratio": 0.5}},  # a default of build, not of the variant
        {"model_kwargs": {"channel_ratio": 4, "dim": 32}},
        {"opt_betas": [0.9, 0.999], "opt_eps": 1e-8},  # timm's own for adamw
        {"stored_size": 8},
        {"aug_repeats": 1},
        {"weight_decay": "0.05"},
        {"min_lr": -0.0},
    ],
)
def test_what_holds_anyway_may_be_said(fields):
    assert make_run(fields) == Run() and make_run(fields).signature == GOLDEN


def test_one_policy_has_one_spelling():
    spellings = ("rand-m9-inc1", "rand-inc1-m9", "rand-m9-n2-inc1", "rand-p0.5-m9-mmax10-inc1-mstd0")
    assert {make_run({"aa": aa}).signature for aa in spellings} == {make_run({"aa": "rand-m9-inc1"}).signature}
    assert make_run({"aa": "ta_wide"}) == make_run({"aa": "trivial"})
    policies = (
        "rand-m9-inc1",
        "rand-m9",
        "rand-m8-inc1",
        "rand-m9-p0.4-inc1",
        "rand-m9-n3-inc1",
        "rand-m9-mstd101-inc1",
    )
    assert len({make_run({"aa": aa}).signature for aa in policies}) == len(policies)
    for aa in (*policies, "rand", "v0r-mstd0.5", "cifar10", "originalr", "rand-m15-n2-p1-mmax15-tweights"):
        assert parse(canonical(aa)) == parse(aa) and canonical(canonical(aa)) == canonical(aa)


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
        ({"crop_pad": 8}, "crops beside the image are black"),
        ({"crop_fill": "wrap"}, "crop_fill wrap does nothing without crop_pad"),
        ({"crop_pad": 5, "crop_fill": "wrap"}, "names some shifts twice; 4 gives each as often as the others"),
        ({"crop_pad": 5, "crop_step": 2}, "not a multiple of crop_step 2; 4 is"),
        ({"amp_dtype": "float16"}, "does nothing without amp"),
        ({"sched": "triangular", "warmup_epochs": 1}, "sched"),
        ({"layer_decay": 0.5, "mode": "linear"}, "layer_decay"),
        ({"opt": "sgd", "opt_betas": [0.9, 0.95]}, "opt_betas 0.9 0.95 does nothing without an opt that has betas"),
        ({"stored_size": 4}, "stored_size 4 is less than img_size 8"),
        ({"min_lr": 2e-3}, "min_lr 0.002 is above lr 0.001"),
        ({"warmup_lr": 2e-3, "warmup_epochs": 1}, "warmup_lr 0.002 is above lr 0.001"),
        ({"scheme": 1}, "scheme 1: this version trains by scheme 2"),
        ({"scheme": 3}, "scheme 3: this version trains by scheme 2"),
        ({"initial_identity": "sha256:0123456789abcdef"}, "does nothing without initial_checkpoint"),
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
