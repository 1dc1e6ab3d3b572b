"""A strictness that moves and penalties that hold: by the formula at each step, the same end however often stopped."""

import json
import math

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy

import archs
from archs.ingredients import penalised
from engine import evaluate, models, optim, transfer
from engine.data import loaders, normalize
from engine.errors import STOPPED, Refusal
from engine.fields import softness
from engine.folder import checkpoint, store
from engine.folder.status import _is_behind
from engine.run import make_how, make_run
from engine.step import make_autocast
from engine.train import train
from tests.engine import test_distributed
from tests.engine.test_train import assert_same, result, stop_after

DIAL = {"mixer": "dial", "depth": 2, "dim": 8}
SMALL = {
    "model": "lattice_nano",
    "model_kwargs": {**DIAL, "strictness": 0.25},
    "train_samples": 330,
    "batch_size": 64,
    "epochs": 4,
    "lr": 2e-3,
    "clip_grad": 1.0,
    "mixup": 0.2,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "amp": True,
    "strictness_to": 1.0,
    "strictness_epochs": 2.5,
    "penalty": "toeplitz",
    "penalty_weight": 0.3,
    "penalty_kernel_size": 3,
}
PLAIN = {"model": "mlp_nano", "train_samples": 330, "batch_size": 64, "epochs": 2, "sched": "constant"}
SGD = {**PLAIN, "opt": "momentum", "momentum": 0.0, "lr": 0.05}


@pytest.fixture(scope="module")
def annealed(digits, tmp_path_factory):
    """SMALL, never stopped, with what each step saw."""
    folder, seen, update = tmp_path_factory.mktemp("annealed"), [], ModelEmaV3.update

    def note(ema, model, step):
        seen.append([float(dial.strictness) for each in (model, ema.module) for _, dial in models._dials(each)])
        return update(ema, model, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelEmaV3, "update", note)
        train(make_run(SMALL), folder, make_how({"data_dir": digits, "threads": 1, "log_interval": 1}))
    return folder, seen


# --- fields


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"model_kwargs": {"mixer": "dense"}},
            "strictness_to 1: lattice_nano has no dial; a lattice_* with mixer=dial",
        ),
        ({"model": "timm/resnet18", "model_kwargs": {}}, "strictness_to 1: timm/resnet18 has no dial"),
        ({"model_kwargs": {**DIAL, "gated": True}}, "a gate learns this dial's strictness; leave out gated=true or"),
        ({"strictness_to": 0.25}, "strictness_to 0.25: the dial stands there already"),
        ({"strictness_epochs": None}, "it needs strictness_epochs: over how many of the 4"),
        ({"strictness_epochs": 3.5}, "leave no epoch of 4 at strictness 1; give 5 epochs or more"),
        ({"strictness_to": None}, "strictness_epochs 2.5 does nothing without strictness_to"),
        ({"best_from": 2}, "best_from 2: the dial moves up to epoch 2; give 3 or more"),
        ({"penalty_weight": None}, "penalty toeplitz needs a penalty_weight"),
        ({"penalty": None}, "penalty_weight 0.3 does nothing without penalty"),
        ({"penalty": "mask", "penalty_kernel_size": None}, "penalty mask needs a penalty_kernel_size"),
        ({"penalty": "distance"}, "penalty_kernel_size 3 does nothing without penalty toeplitz or mask"),
        ({"penalty": "lasso"}, "penalty 'lasso'"),
        ({"body_lr_scale": 0.0}, "penalty toeplitz does nothing with body_lr_scale 0"),
    ],
)
def test_a_mistake_is_one_line(fields, words):
    with pytest.raises(Refusal) as caught:
        make_run({**SMALL, **fields})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "mlp_nano"}, "penalty toeplitz: mlp_nano: 112 units do not stand on 8 x 8 places; nearest: 64"),
        ({"model": "mlp_nano", "penalty_stride": 3}, "stride 3 does not divide the grid of 8 x 8 places"),
        ({"model": "mlp_nano", "penalty_stride": 8}, "its units stand on one place, so that nothing is shared"),
        (
            {"model": "resmlp_nano", "penalty_stride": 2},
            "its units stand where the tokens are; leave out penalty_stride",
        ),
        (
            {"model": "resmlp_nano", "penalty": "mask", "penalty_kernel_size": 7},
            "a window of 7 holds all of 4 x 4 places",
        ),
        ({"model": "convmixer_nano"}, "penalty toeplitz: convmixer_nano has no weights that read places; a flat net's"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_anything_starts(fields, words):
    run = make_run({"penalty": "toeplitz", "penalty_weight": 0.1, **fields})
    with pytest.raises(Refusal) as caught:
        models.preflight(run)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_strictness_goes_by_its_closed_form():
    run = make_run({**SMALL, "strictness_epochs": 2})
    at = [softness.strictness(run, run.arguments, step, 5) for step in range(20)]
    assert at == pytest.approx([min(1.0, 0.25 + 0.75 * step / 10) for step in range(20)], abs=1e-15) and at[10] == 1
    soft = run.but(strictness_to=0, strictness_sched="cosine")
    at = [softness.strictness(soft, soft.arguments, step, 5) for step in range(20)]
    assert at[:10] == pytest.approx([0.25 * math.cos(math.pi * step / 20) ** 2 for step in range(10)])
    assert at[10:] == [0.0] * 10


def test_what_a_dial_becomes_and_what_is_compared():
    def becomes(**fields):
        run = make_run({**SMALL, **fields})
        assert run.ended.ended == run.ended and run.ended.strictness_to is None
        return run.final_kwargs

    assert becomes() == {"mixer": "kernel", "depth": 2, "dim": 8}
    groups = {"groups": 8, "wrap": True, "strictness": 0}
    assert becomes(model_kwargs={**DIAL, **groups}) == {"mixer": "depthwise", "depth": 2, "dim": 8, "wrap": True}
    assert becomes(model_kwargs={**DIAL, "groups": 4}) == {"mixer": "kernel", "depth": 2, "dim": 8, "groups": 4}
    assert becomes(strictness_to=0.75) == {**DIAL, "strictness": 0.75}
    assert becomes(strictness_to=0.5) == DIAL, "0.5 is the default"
    fixed = dict.fromkeys(softness.FIELDS[:2])
    assert becomes(**fixed, model_kwargs={**DIAL, "strictness": 1})["mixer"] == "kernel"
    assert becomes(**fixed, model_kwargs={**DIAL, "gated": True}) == {**DIAL, "gated": True}
    rungs = {make_run({**SMALL, "model_kwargs": {**DIAL, "strictness": s}}).rung for s in (0, 0.25, 0.5)}
    assert len(rungs) == 3, "runs that start otherwise are not pooled"


# --- a strictness that moves


def test_each_step_is_at_its_strictness_in_the_model_and_its_average(annealed):
    assert annealed[1] == [[pytest.approx(min(1.0, 0.25 + 0.75 * step / 12.5))] * 4 for step in range(20)]
    assert annealed[1][-1] == [1.0] * 4


def test_resume_in_the_middle_equals_uninterrupted(annealed, how, tmp_path):
    run = make_run(SMALL)
    for steps in (2, 4, 8):  # of 20: in epoch 0, at the end of epoch 1, and in epoch 2
        with pytest.raises(Refusal) as caught:
            train(run, tmp_path, how, stop_after(steps))
        assert caught.value.code == STOPPED
    train(run, tmp_path, how)
    assert_same(result(tmp_path), result(annealed[0]))


def test_nothing_is_left_of_a_dial_at_its_strict_end(annealed, how):
    """The weights are those of a kernel, say so, load by every way, and give what training evaluated."""
    folder, _ = annealed
    last, best = (checkpoint.read(folder / name) for name in ("last.pth.tar", "model_best.pth.tar"))
    assert last["args"]["model_kwargs"] == {"mixer": "kernel", "depth": 2, "dim": 8}
    assert last["args"]["strictness_to"] is None and best["epoch"] == 3, "the first one without the rest"
    model = archs.create("lattice_nano", mixer="kernel", depth=2, dim=8)
    for file in (last, best):
        model.load_state_dict(file["state_dict"], strict=True)
    again, run = make_run(dict(last["args"])), make_run(SMALL)
    _, loader, facts = loaders.make_loaders(run, how)
    found = evaluate.evaluate(
        model, loader, normalize.make_prepare(run, facts, torch.device("cpu")), make_autocast(run, torch.device("cpu"))
    )
    assert round(found["loss"], 4) == pytest.approx(store.read_summary(folder)[-1]["eval_loss"], abs=2e-4)
    transfer.load_weights(folder / "last.pth.tar", again, models.create(again, 10, 1), 10, 1, new_head=False)
    assert store.read_json(folder / "profile.json")["params"] == sum(weight.numel() for weight in model.parameters())


def test_epochs_tell_penalty_and_strictness(annealed):
    lines = [json.loads(line) for line in (annealed[0] / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "penalty" in line]
    assert [line["epoch"] for line in told] == [0, 1, 2, 3]
    assert [line["strictness"] for line in told] == [[pytest.approx(s, abs=1e-6)] * 2 for s in (0.49, 0.79, 1, 1)]
    assert all(line["penalty"] > 0 for line in told) and told[-1]["penalty"] < told[0]["penalty"]
    log = (annealed[0] / "log.txt").read_text()
    assert f"penalty {told[0]['penalty']:.4g}  strictness 0.490 0.490" in log


def test_an_epoch_that_is_told_again_is_told_once():
    """Of a run that goes on from a checkpoint at an epoch's last step, before its evaluation."""
    told, step = {"step": 5, "epoch": 0, "penalty": 0.1}, {"step": 5, "epoch": 0, "loss": 1.0, "lr": 0.1}
    assert _is_behind(step, 5, 0) and _is_behind(told, 5, 1) and not _is_behind(told, 5, 0)


def test_no_weights_are_kept_on_the_way(how, tmp_path):
    with pytest.raises(Refusal, match=r"keep_epochs 2: the dial still moves that .* anneals; give 3 or more"):
        train(make_run(SMALL), tmp_path, how.model_copy(update={"keep_epochs": (2,)}))


def test_a_gate_learns_its_strictness_and_tells_it(how, tmp_path):
    fields = {"model_kwargs": {**DIAL, "gated": True}, "epochs": 2, "lr": 0.05}
    free = {key: SMALL[key] for key in ("model", "train_samples", "batch_size")}
    train(make_run({**free, **fields}), tmp_path, how)
    (first, last) = [
        line["strictness"] for line in map(json.loads, (tmp_path / "metrics.jsonl").open()) if "strictness" in line
    ]
    assert len({*first, *last, 0.5}) == 5
    state = checkpoint.read(tmp_path / "last.pth.tar")
    assert state["args"]["model_kwargs"]["gated"] is True
    gates = [torch.sigmoid(value).item() for key, value in state["state_dict"].items() if key.endswith("gate")]
    assert gates == pytest.approx(last, abs=1e-5)


# --- penalties


def batches_of(run, how):
    train_loader, _, facts = loaders.make_loaders(run, how)
    prepare = normalize.make_prepare(run, facts, torch.device("cpu"))
    for epoch in range(run.epochs):
        for images, labels in train_loader.epoch(epoch, 0):
            yield prepare(images), labels.clone()


def started(run):
    from engine import rng

    rng.seed_everything(run.seed, "init")
    return models.create(run, 10, 1)


def test_beta_lasso_is_the_papers_algorithm(how, tmp_path):
    """Algorithm 1 of arXiv 2007.13657 on the first layer, plain SGD with decay on the others, written out."""
    penalty, beta, decay = 2e-3, 8.0, 0.1
    fields = {"penalty": "beta_lasso", "penalty_weight": penalty, "penalty_beta": beta, "weight_decay": decay}
    run = make_run({**SGD, **fields})
    train(run, tmp_path, how)
    model = started(run)
    for x, y in batches_of(run, how):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for name, theta in model.named_parameters():
                if name == "stem.0.proj.weight":
                    theta -= run.lr * (theta.grad + penalty * theta.sign())
                    theta *= theta.abs() >= beta * penalty
                else:
                    theta -= run.lr * (theta.grad + (decay * theta if theta.ndim > 1 else 0))
    found = checkpoint.read(tmp_path / "last.pth.tar")["state_dict"]
    for name, theta in model.state_dict().items():
        torch.testing.assert_close(found[name], theta, rtol=1e-4, atol=1e-6)
    first = found["stem.0.proj.weight"]
    zero = (first == 0).float().mean().item()
    assert 0.05 < zero < 0.95 and first[first != 0].abs().min() >= beta * penalty


@pytest.mark.parametrize(
    ("penalty", "decayed"), [("beta_lasso", False), ("distance", True), ("toeplitz", True), ("mask", True)]
)
@pytest.mark.parametrize("opt", ["adamw", "momentum"])
def test_beta_lasso_stands_in_place_of_decay_and_others_beside_it(penalty, decayed, opt):
    window = {"penalty_kernel_size": 3} if penalty == "mask" else {}
    run = make_run({"model": "lattice_nano", "opt": opt, "penalty": penalty, "penalty_weight": 0.1, **window})
    model = models.create(run, 10, 1)
    held = {id(matrix.stored) for matrix in penalised.find(model)}
    plain = optim.make_optimizer(run.but(penalty=None, penalty_weight=None, penalty_kernel_size=None), model)
    groups = optim.make_optimizer(run, model).param_groups
    ours, theirs = (
        {id(w) for g in each if g["weight_decay"] for w in g["params"]} for each in (groups, plain.param_groups)
    )
    assert len(held) == 3 and held <= theirs and ours == (theirs if decayed else theirs - held)


@pytest.mark.parametrize("penalty", ["distance", "toeplitz", "mask"])
def test_a_penalty_is_part_of_the_loss(penalty, how, tmp_path):
    """One step of plain SGD, against the gradient of the sum of both; clipping sees it, too."""
    window = {} if penalty == "distance" else {"penalty_kernel_size": 3, "penalty_stride": 4}
    fields = {"penalty": penalty, "penalty_weight": 0.7, "train_samples": 64, "epochs": 1, "clip_grad": 0.5}
    run = make_run({**SGD, **fields, **window, "weight_decay": 0.0})
    train(run, tmp_path, how)
    model = started(run)
    ((x, y),) = batches_of(run, how)
    (cross_entropy(model(x), y) + optim.make_penalty(run, model).value()).backward()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5
    found = checkpoint.read(tmp_path / "last.pth.tar")["state_dict"]
    for name, theta in model.named_parameters():
        torch.testing.assert_close(found[name], theta.detach() - run.lr * theta.grad, rtol=1e-4, atol=1e-6)


def test_float16_scales_the_loss_and_not_the_penalty(how, tmp_path):
    fields = {"penalty": "mask", "penalty_weight": 3.0, "penalty_kernel_size": 1, "train_samples": 64, "epochs": 1}
    run = make_run({**SGD, **fields, "model": "resmlp_nano", "model_kwargs": {"depth": 1, "dim": 8}, "lr": 0.1})
    weights = []
    for name, half in (("a", {}), ("b", {"amp": True, "amp_dtype": "float16"})):
        train(run.but(**half), tmp_path / name, how)
        weights.append(checkpoint.read(tmp_path / name / "last.pth.tar")["state_dict"])
    key, moved = "stages.0.0.0.branch.mix.weight", []
    for state in weights:
        moved.append(state[key] - started(run).state_dict()[key])
    torch.testing.assert_close(moved[1], moved[0], rtol=0.05, atol=0.02 * moved[0].abs().max().item())


def test_a_convolution_is_what_toeplitz_asks_for(how, tmp_path):
    """A strong penalty leaves the token mixing a kernel; without it, it is none."""
    shares = []
    for name, fields in (("a", {"penalty": "toeplitz", "penalty_weight": 3.0, "penalty_kernel_size": 3}), ("b", {})):
        run = make_run({**SGD, "model": "lattice_nano", "model_kwargs": {"depth": 1, "dim": 8}, "epochs": 4, **fields})
        train(run, tmp_path / name, how)
        model = models.create(run, 10, 1)
        model.load_state_dict(checkpoint.read(tmp_path / name / "last.pth.tar")["state_dict"])
        (matrix,) = penalised.find(model)
        V = matrix.dense()
        from archs.ingredients.lift import nearest

        shares.append((nearest(V, matrix.geometry, 3).square().sum() / V.square().sum()).item())
    assert shares[0] > 0.9 and shares[1] < 0.5


def test_two_processes_hold_it_as_one_does(how, digits, tmp_path):
    """A dial on its way to 1 with a penalty, which is not counted once for each process."""
    fields = {key: SMALL[key] for key in SMALL if key not in ("mixup", "amp", "lr", "train_samples")}
    run = make_run(
        {**test_distributed.RUN, **fields, "model_kwargs": {**DIAL, "depth": 1}, "epochs": 3, "strictness_epochs": 1.5}
    )
    store.make_folder(run, tmp_path / "b")
    processes = test_distributed.start(tmp_path / "b", digits)
    train(run, tmp_path / "a", how)
    assert [code for _, code in test_distributed.finish(processes)] == [0, 0]
    a, b = (checkpoint.read(tmp_path / name / "last.pth.tar")["state_dict"] for name in "ab")
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)
