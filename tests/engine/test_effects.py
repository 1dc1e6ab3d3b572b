"""Same result, same signature: a pair of runs that differ in one field is refused, or trains to something else."""

import inspect
import typing

import pytest
import torch
from timm.optim import get_optimizer_info

from engine.data.ensure import ensure
from engine.errors import Refusal
from engine.fields.effects import EFFECTS, OPTIMIZERS
from engine.run import Run, make_how, make_run
from engine.train import train

# What switches a field on or off. The base trains nothing but plain steps.
BASE = {"model_kwargs": {"depth": 2, "dim": 8}, "train_samples": 96, "batch_size": 32, "epochs": 3, "lr": 0.01}
OPTS = [{"opt": opt} for opt in OPTIMIZERS]
SCHEDS = [{"sched": sched} for sched in ("cosine", "constant", "linear", "step", "triangular")]
LINEAR = [{"mode": "linear", "initial_checkpoint": "WEIGHTS"}]
LESS = {"initial_checkpoint": "WEIGHTS"}
DEIT = {"model": "deit_nano"}
DILUTED = {**DEIT, "dilute_layers": "0", "dilute_epochs": 2}
LATER = {**DILUTED, "epochs": 4, "dilute_epochs": 3}  # of three epochs cosine and linear differ
NET = {"model": "mlp_nano", "model_kwargs": {"depth": 2, "dim": 8}}
PRUNED = {**NET, "prune_by": "random", "prune_share": 0.9}
DIAL = {"model": "lattice_nano", "model_kwargs": {"mixer": "dial", "depth": 1, "dim": 8}}
ANNEALED = {**DIAL, "strictness_to": 0.8, "strictness_epochs": 2}
HELD = {"model": "resmlp_nano", "penalty": "toeplitz", "penalty_weight": 0.1, "penalty_kernel_size": 3}
LASSO = {"model": "resmlp_nano", "penalty": "beta_lasso", "penalty_weight": 1e-3}
FIRST = {**NET, "model_kwargs": {"depth": 2, "dim": 16}, "penalty": "toeplitz", "penalty_weight": 0.1}
# Field -> another value, and the runs in which it is changed.
WALK = {
    "model": ("bmlp_nano", [{"model_kwargs": {}}]),
    "model_kwargs": ({"depth": 2, "dim": 16}, [{}]),
    "dataset": ("cifar10", []),
    "img_size": (4, []),
    "stored_size": (12, [{}]),
    "train_samples": (64, [{}]),
    "seed": (1, [{}]),
    "epochs": (2, [{}]),
    "batch_size": (48, [{}]),
    "grad_accum_steps": (2, [{}]),
    "opt": ("nadamw", [{}]),
    "lr": (0.02, [{}]),
    "momentum": (0.5, OPTS),
    "opt_eps": (1e-2, OPTS),
    "opt_betas": ((0.5, 0.6), OPTS),
    "layer_decay": (0.5, [{}, *LINEAR]),
    "weight_decay": (0.9, [{}, *LINEAR]),
    "clip_grad": (1e-3, [{}]),
    "sched": ("linear", [{}]),
    "decay_epochs": (1.0, SCHEDS),
    "decay_rate": (0.5, [{**sched, "decay_epochs": 1} if sched["sched"] == "step" else sched for sched in SCHEDS]),
    "cooldown_epochs": (1, SCHEDS),
    "warmup_epochs": (1.0, SCHEDS),
    "warmup_lr": (0.001, [{**sched, "warmup_epochs": 1} for sched in SCHEDS[:4]] + SCHEDS),
    "min_lr": (0.005, SCHEDS),
    "bce_loss": (True, [{}]),
    "smoothing": (0.1, [{}, {"bce_loss": True}, {"mixup": 0.5}, {"bce_loss": True, "mixup": 0.5}]),
    "mixup": (0.5, [{}]),
    "cutmix": (1.0, [{}]),
    "drop_path": (0.5, [{}, *LINEAR]),
    "scale": ((0.3, 1.0), [{}]),
    "ratio": ((0.9, 1.0), [{}, {"scale": (0.3, 1)}]),
    "aa": ("rand-m9", [{}, {"hflip": 0.5}]),
    "color_jitter": (0.4, [{}, {"aa": "rand-m9"}]),
    "reprob": (0.5, [{}]),
    "remode": ("pixel", [{}, {"reprob": 0.9}]),
    "crop_pad": (1, [{}, {"scale": (0.3, 1)}]),
    "crop_fill": ("wrap", [{}, {"crop_pad": 1}]),
    "crop_step": (2, [{}, {"crop_pad": 2}, {"crop_pad": 2, "crop_fill": "wrap"}]),
    "hflip": (0.5, [{}]),
    "aug_repeats": (3, [{}, {"hflip": 0.5}]),
    "permute": ("pixels", [{}]),
    "holdout": (0.2, [{}]),
    "model_ema": (True, [{}]),
    "model_ema_decay": (0.9, [{}, {"model_ema": True, "model_ema_decay": 0.5}]),
    "model_ema_warmup": (True, [{}, {"model_ema": True}]),
    "dilute_layers": ("1", [DILUTED]),
    "dilute_epochs": (1.0, [{}, DILUTED]),
    "dilute_sched": ("cosine", [{}, DILUTED, LATER]),
    "dilute_by": ("step", [{}, DILUTED]),
    "prune_by": ("locality", [{}, {**PRUNED, "prune_by": "magnitude"}]),
    "prune_share": (0.5, [{}, PRUNED]),
    "prune_rewind": (True, [{}, PRUNED, {**PRUNED, "initial_checkpoint": "DENSE"}]),
    "strictness_to": (1.0, [{}, ANNEALED]),
    "strictness_epochs": (1.0, [{}, ANNEALED]),
    "strictness_sched": ("cosine", [{}, ANNEALED]),
    "penalty": ("mask", [{}, *LINEAR, HELD]),
    "penalty_weight": (0.5, [{}, HELD]),
    "penalty_beta": (2.0, [{}, HELD, LASSO]),
    "penalty_kernel_size": (5, [{}, HELD, LASSO]),
    "penalty_stride": (2, [{}, LASSO, {**FIRST, "penalty_stride": 4}]),
    "distil_epochs": (1.0, [{}, {**LESS, "model_kwargs": {**BASE["model_kwargs"], "mlp_layers": [0]}}]),
    "best_from": (2, [{"lr": 0.3}]),
    "mode": ("linear", [{}]),
    "body_lr_scale": (0.1, [{}, *LINEAR]),
    "initial_checkpoint": ("WEIGHTS", [{}]),
    "amp": (True, [{}]),
    "amp_dtype": ("float16", [{}, {"amp": True}]),
}
NOT_WALKED = {"scheme", "initial_identity"}  # never chosen; pinned in test_run.py and test_origin.py
PAIRS = [(field, index) for field, (_, contexts) in WALK.items() for index in range(len(contexts))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory, digits):
    """Of runs with another seed: WEIGHTS of the base, DENSE of the net that is pruned."""
    found = {}
    for word, fields in {"WEIGHTS": BASE, "DENSE": {**BASE, **NET}}.items():
        folder = tmp_path_factory.mktemp("weights")
        train(make_run({**fields, "seed": 9}), folder, make_how({"data_dir": digits, "threads": 1}))
        found[word] = str(folder / "model_best.pth.tar")
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory, digits):
    """What a run ends with, trained once each."""
    ensure("digits", 12, digits, say=lambda line: None)
    how, known = make_how({"data_dir": digits, "threads": 1}), {}

    def result(run):
        if run.signature not in known:
            folder = tmp_path_factory.mktemp("run")
            train(run, folder, how)
            last, best = (torch.load(folder / f"{n}.pth.tar", weights_only=True) for n in ("last", "model_best"))
            figures = (folder / "summary.csv").read_text() + f"best {best['epoch']}"
            known[run.signature] = last["state_dict"], figures
        return known[run.signature]

    return result


def test_every_field_is_walked():
    assert WALK.keys() | NOT_WALKED == Run.model_fields.keys(), (
        "a new field belongs into WALK, and where it may be idle"
    )
    assert EFFECTS.keys() <= Run.model_fields.keys()


@pytest.mark.parametrize("field, index", PAIRS)
def test_a_field_is_refused_or_changes_the_result(field, index, weights, results):
    value, contexts = WALK[field]
    context = {**BASE, **contexts[index]}
    changed = {**context, field: value}
    for fields in (context, changed):
        if "initial_checkpoint" in fields:
            fields["initial_checkpoint"] = weights[fields["initial_checkpoint"]]
    run = make_run(context)
    try:
        other = make_run(changed)
    except Refusal as refusal:
        assert field in str(refusal) and "\n" not in str(refusal)
        return
    assert other.signature != run.signature
    (a, figures_a), (b, figures_b) = results(run), results(other)
    same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not (same and figures_a == figures_b), f"{field} changes nothing in {context}, so it must be refused"


@pytest.mark.parametrize("field", EFFECTS)
def test_the_refusal_names_both_fields(field, weights):
    """In some run of the walk the field is refused, in another it is taken."""
    if field in NOT_WALKED:
        return
    value, contexts = WALK[field]
    said = []
    for context in contexts:
        if context in LINEAR:
            context = {"mode": "linear"}
        if "initial_checkpoint" in context:
            context = {**context, "initial_checkpoint": weights[context["initial_checkpoint"]]}
        try:
            make_run({**BASE, **context, field: value})
            said.append("")
        except Refusal as refusal:
            said.append(str(refusal))
    assert "" in said
    words = EFFECTS[field].needs
    assert any(line.startswith(f"{field} ") and f"does nothing without {words}; leave it out" in line for line in said)


def test_optimizers_are_timms():
    """What each takes, and its own values, from timm's registry and torch's signatures."""
    for name, own in OPTIMIZERS.items():
        info = get_optimizer_info(name)
        assert (own.betas is not None, own.eps is not None, own.momentum) == (
            info.has_betas,
            info.has_eps,
            info.has_momentum,
        ), name
        known = inspect.signature(info.opt_class.__init__).parameters
        for key, value in (("betas", own.betas), ("eps", own.eps)):
            assert value is None or (info.defaults or {}).get(key, known[key].default) == value, name


@pytest.mark.parametrize(("field", "known"), [("opt", set(OPTIMIZERS)), ("sched", {each["sched"] for each in SCHEDS})])
def test_all_choices_of_a_field_are_in_the_tables(field, known):
    assert set(typing.get_args(Run.model_fields[field].annotation)) == known
