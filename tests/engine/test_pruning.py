"""Pruning: what each criterion keeps, that a unit that is gone leaves no trace, that masks hold while a run trains."""

import importlib

import numpy as np
import pytest
import torch

import archs
from archs.ingredients import penalised, places
from engine import models, rng
from engine.errors import Refusal
from engine.fields.rungs import names
from engine.folder import checkpoint
from engine.pruning import criteria, masks, stages, targets, units
from engine.run import LAST, make_run
from engine.train import train
from tests.engine.test_train import assert_same, result, stop_after

MLP = {"model": "mlp_nano", "model_kwargs": {"depth": 2, "dim": 24}}
SMALL = {**MLP, "train_samples": 330, "batch_size": 64, "epochs": 3, "lr": 2e-3}
WEIGHTS = [name for name in criteria.names() if criteria.form(name) == "weights"]
UNITS = [name for name in criteria.names() if criteria.form(name) == "units"]


def first_layer(**fields):
    torch.manual_seed(0)
    model = archs.create(MLP["model"], img_size=8, num_classes=10, in_chans=3, **MLP["model_kwargs"])
    run = make_run({**MLP, "prune_share": 0.75, **fields})
    return model, targets.find(model)[0], run


# --- weights


def test_both_forms_of_criteria_are_there():
    assert {"magnitude", "locality", "random"} <= set(WEIGHTS) and {"rank", "norm", "random_units"} <= set(UNITS)
    assert sorted(WEIGHTS + UNITS) == criteria.names()


@pytest.mark.parametrize("by", WEIGHTS)
@pytest.mark.parametrize("share", [0.1, 0.75, 0.97, 0.999])
def test_every_unit_loses_the_same_share(by, share):
    model, target, run = first_layer(prune_by=by, prune_share=share)
    (mask,) = masks.make(run, model).values()
    assert mask.shape == model.stem[0].proj.weight.shape == (24, 192)
    assert (mask.sum(1) == max(1, round((1 - share) * 192))).all()
    assert target.name == "stem.0.proj.weight"


def test_magnitude_keeps_the_largest_of_each_unit():
    model, _, run = first_layer(prune_by="magnitude")
    weight = model.stem[0].proj.weight.detach()
    (mask,) = masks.make(run, model).values()
    for row, stays in zip(weight, mask, strict=True):
        assert set(stays.nonzero().flatten().tolist()) == set(row.abs().topk(48).indices.tolist())


def test_locality_keeps_the_places_nearest_to_the_centroid():
    """Pixel by pixel, with NumPy, of weights whose mass lies here and there."""
    model, _, run = first_layer(prune_by="locality")
    weight = model.stem[0].proj.weight
    with torch.no_grad():
        weight.mul_(torch.rand(24, 1, 64).pow(6).repeat(1, 3, 1).flatten(1))
    (mask,) = masks.make(run, model).values()
    w = weight.detach().double().numpy().reshape(24, 3, 8, 8)
    for unit in range(24):
        mass = (w[unit] ** 2).sum(0)
        y, x = ((mass * grid).sum() / mass.sum() for grid in np.mgrid[:8, :8])
        d2 = (np.mgrid[:8, :8][0] - y) ** 2 + (np.mgrid[:8, :8][1] - x) ** 2
        stays = mask[unit].reshape(3, 8, 8).numpy()
        assert stays.sum() == 48 and d2[stays.any(0)].max() <= d2[~stays.all(0)].min() + 1e-9
        nearest = np.argsort(d2.ravel())[:16]  # 48 weights are 16 places of three channels
        assert stays.reshape(3, 64)[:, nearest].all()


@pytest.mark.parametrize("stem", ["shared", "pixels"])
def test_units_of_one_patch_as_large_as_the_image_stand_where_their_weights_are(stem):
    """As those of a flat net, whose first layer it is; penalties read it alike."""
    model = archs.create("lattice_nano", mixer="none", stem=stem, patch_size=8)
    target, (matrix,) = targets.find(model)[0], penalised.find(model)
    assert (target.name, target.at) == ("stem.weight", None) and not matrix.placed
    w_UP = model.stem.weight.detach().double().square().numpy()
    rows, columns = np.divmod(np.arange(64), 8)
    middle = np.stack([w_UP @ rows, w_UP @ columns], 1) / w_UP.sum(1, keepdims=True)
    far = np.hypot(middle[:, :1] - rows, middle[:, 1:] - columns)
    np.testing.assert_allclose(target.distances(), far, atol=1e-9)


@pytest.mark.parametrize("mixer", ["dense", "dense_c"])
def test_locality_of_a_matrix_over_the_tokens_is_its_window(mixer):
    """With nine places a token inside the grid keeps its 3 x 3 window, whatever its weights."""
    run = make_run({"model": "lattice_nano", "prune_by": "locality", "prune_share": 1 - 9 / 16})
    model, window = archs.create("lattice_nano", mixer=mixer), places.window((4, 4), 3, wrap=False)
    made = masks.make(run, model)
    assert len(made) == 3 and not window[5].all()
    for (name, mask), block in zip(made.items(), model.blocks(), strict=True):
        assert name.endswith("0.branch.weight") and mask.shape == block[0].branch.weight.shape
        for token in (5, 6, 9, 10):
            assert (mask[:, token] == window[token]).all()
        assert (mask.sum(-1) == 9).all()


def test_locality_of_a_stem_that_reads_all_pixels_leaves_each_token_its_patch():
    """Four of 64 pixels in patches of 2 x 2: the stem `unshared`, exactly."""
    run = make_run({"model": "lattice_nano", "prune_by": "locality", "prune_share": 1 - 4 / 64})
    model = archs.create("lattice_nano", mixer="kernel", stem="pixels")
    mask = masks.make(run, model)["stem.weight"].unflatten(0, (16, 32)).unflatten(2, (8, 8))
    for token in range(16):
        patch = torch.zeros(8, 8, dtype=torch.bool)
        patch[token // 4 * 2 :, token % 4 * 2 :][:2, :2] = True
        assert (mask[token] == patch).all()


def test_what_is_zero_goes_first_so_rounds_are_nested():
    model, _, run = first_layer(prune_by="random")
    weight, before = model.stem[0].proj.weight, None
    for share, by in ((0.3, "random"), (0.6, "magnitude"), (0.7, "random"), (0.9, "locality")):
        (mask,) = masks.make(run.but(prune_by=by, prune_share=share), model).values()
        assert before is None or (mask <= before).all()
        masks.Held(model, {"stem.0.proj.weight": mask}).weights()
        before = mask
        assert ((weight != 0) == mask).all()


def test_chance_is_the_seeds():
    model, _, run = first_layer(prune_by="random")
    first, again, other = (masks.make(run.but(seed=seed), model)["stem.0.proj.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and 0.1 < (first & other).sum() / first.sum() < 0.4  # by chance a quarter


# --- units


def plain(layer="linear_relu", dim=(12, 12, 8, 8, 6), skips=(1, 3)):
    torch.manual_seed(1)
    given = {"depth": len(dim), "dim": list(dim), "skips": list(skips), "layer": layer}
    model = archs.create("mlp_nano", **given).double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.copy_(torch.rand_like(value) + 0.5)
    return model, given


@pytest.mark.parametrize("layer", ["linear_relu", "linear_relu_norm"])
@pytest.mark.parametrize("by", UNITS)
def test_a_net_without_units_is_the_smaller_net(layer, by):
    """Whose weights are the rows and columns that are left, in float64, with skips and with norms."""
    model, given = plain(layer)
    x_BCHW = torch.randn(20, 1, 8, 8, dtype=torch.float64)
    run = make_run({"model": "mlp_nano", "model_kwargs": {"layer": layer}, "prune_by": by, "prune_share": 0.5})
    made, chain = masks.make(run, model, x_BCHW), units.chain(model)
    stays = [made[f"{name}.bias"] for name in chain.names[:-1]]
    assert [int(each.sum()) for each in stays] == [6, 6, 4, 4, 3]
    assert torch.equal(stays[0], stays[1]) and torch.equal(stays[2], stays[3])  # tied by a skip
    small = archs.create("mlp_nano", **{**given, "dim": [6, 6, 4, 4, 3]}).double().eval()
    large, state = model.state_dict(), small.state_dict()
    norms = {12: stays[0], 8: stays[2], 6: stays[4]}
    for key, value in large.items():
        name, _, last = key.rpartition(".")
        if name in chain.names:
            i = chain.names.index(name)
            rows = stays[i] if i < 5 else slice(None)
            state[key] = value[rows][:, stays[i - 1]] if last == "weight" and i else value[rows]
        elif value.ndim:
            state[key] = value[norms[len(value)]]
    small.load_state_dict(state)
    whole = model(x_BCHW)
    masks.Held(model, made).weights()
    assert (model(x_BCHW) - small(x_BCHW)).abs().max() < 1e-12 < (model(x_BCHW) - whole).abs().max()


def test_the_rank_is_the_published_rule_node_by_node():
    """Written a second time as in the published code, one node after another, without skips."""
    model, _ = plain(dim=(7, 5, 6), skips=())
    with torch.no_grad():
        model.stages[0][0][0].weight[:, 2] = 0.0  # a unit that nobody reads
        model.stages[0][0][0].weight[3, 1] = 0.0
    x_BCHW = torch.randn(9, 1, 8, 8, dtype=torch.float64)
    found = importlib.import_module("engine.pruning.criteria.rank").score(units.layers(model, x_BCHW), None)
    x, previous = x_BCHW.flatten(1), None
    for scores, linear in zip(found, units.chain(model).linears, strict=False):
        w, put_out = linear.weight.detach().numpy(), torch.relu(linear(x)).detach()
        a = np.sqrt((put_out.numpy() ** 2).sum(0))
        previous = np.sqrt((x.detach().numpy() ** 2).sum(0)) if previous is None else previous
        previous = previous / previous.sum()
        wanted = []
        for i in range(len(w)):
            given = 0.0
            for j in range(w.shape[1]):
                total, count = abs(w[:, j]).sum(), (w[:, j] != 0).sum()
                given += previous[j] * (0.5 * abs(w[i, j]) / total + 0.5 * (w[i, j] != 0) / count if count else 0.0)
            wanted.append(0.9 * given + 0.1 * a[i] / a.sum())
        previous = np.array(wanted) / sum(wanted)
        assert scores.sum() == pytest.approx(1) and np.abs(scores.numpy() - previous).max() < 1e-12
        x = put_out


def test_a_skip_is_an_edge_of_the_graph():
    """Two layers of weights zero but for the skip: the rank goes along it."""
    eye, after = torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    before = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    layers = [units.Layer(eye, before, after, True)]
    (found,) = importlib.import_module("engine.pruning.criteria.rank").score(layers, None)
    assert torch.allclose(found, 0.9 * before / 8 + 0.1 / 3, atol=1e-15)


def test_the_classes_are_no_units():
    model, _ = plain()
    x_BCHW = torch.randn(9, 1, 8, 8, dtype=torch.float64)
    run = make_run({"model": "mlp_nano", "prune_by": "rank", "prune_share": 0.9})
    made = masks.make(run, model, x_BCHW)
    assert made["head.weight"].any(1).all() and "head.bias" not in made and not made["head.weight"].all()


# --- in training


@pytest.fixture(scope="module")
def source(digits, tmp_path_factory):
    from engine.run import make_how

    folder = tmp_path_factory.mktemp("source") / "run"
    run = make_run({**SMALL, "model_kwargs": {**MLP["model_kwargs"], "layer": "linear_relu"}})
    train(run, folder, make_how({"data_dir": digits, "threads": 1}))
    return run, folder


OPTS = [{"opt": "adamw", "weight_decay": 0.5}, {"opt": "muon"}, {"opt": "momentum", "lr": 0.05}, {"opt": "lamb"}]


@pytest.mark.parametrize("own", OPTS, ids=lambda own: own["opt"])
def test_masks_hold_while_everything_else_trains(source, how, tmp_path, own):
    run = source[0].but(initial_checkpoint=str(source[1]), prune_by="magnitude", prune_share=0.8, **own)
    run = run.but(model_ema=True, model_ema_decay=0.9, clip_grad=1.0, epochs=2)
    train(run, tmp_path / "a", how)
    before, after = (checkpoint.read(folder / LAST)["state_dict"] for folder in (source[1], tmp_path / "a"))
    key = "stem.0.proj.weight"
    assert ((after[key] != 0).sum(1) == round(0.2 * 64)).all()
    kept = before[key].abs().topk(round(0.2 * 64), 1).indices
    assert (after[key].gather(1, kept) != 0).all() and (after[key] != before[key]).any()
    assert (after["head.weight"] != before["head.weight"]).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"prune_by": "locality", "prune_share": 0.7},
        {"prune_by": "rank", "prune_share": 0.5},
        {"prune_by": "random", "prune_share": 0.5, "prune_rewind": True},
    ],
    ids=lambda fields: fields["prune_by"],
)
def test_resume_in_the_middle_equals_uninterrupted(source, how, tmp_path, fields):
    more = {"model_ema": True, "model_ema_decay": 0.9, "amp": True, "clip_grad": 0.5, "crop_pad": 1}
    run = source[0].but(initial_checkpoint=str(source[1]), **fields, **more)
    train(run, tmp_path / "a", how)
    for steps in (2, 9):
        with pytest.raises(Refusal):
            train(run, tmp_path / "b", how, stop=stop_after(steps))
    train(run, tmp_path / "b", how)
    assert_same(result(tmp_path / "a"), result(tmp_path / "b"))


def test_gradients_of_what_is_gone_count_in_no_norm(source, how, tmp_path):
    """With everything but a few weights gone, and a body that is frozen by them, clipping sees what is left alone."""
    model = archs.create("mlp_nano")
    held = masks.Held(model, {"stem.0.proj.weight": torch.zeros(112, 64, dtype=torch.bool)})
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    held.gradients()
    assert not model.stem[0].proj.weight.grad.any() and model.stem[0].proj.bias.grad.any()


def test_rewinding_starts_from_the_seeds_own_weights(source, how, tmp_path):
    run = source[0].but(initial_checkpoint=str(source[1]), prune_by="magnitude", prune_share=0.6, prune_rewind=True)
    train(run, tmp_path / "a", how.model_copy(update={"keep_epochs": (0,)}))
    rng.seed_everything(run.seed, "init")
    fresh = models.create(run, 10, 1).state_dict()
    (begun,) = (checkpoint.read(path)["state_dict"] for path in (tmp_path / "a").glob("weights-epoch-0.pth.tar"))
    trained = checkpoint.read(source[1] / LAST)["state_dict"]["stem.0.proj.weight"]
    stays = torch.zeros_like(trained, dtype=torch.bool)
    stays.scatter_(1, trained.abs().topk(round(0.4 * 64), 1).indices, True)
    fresh["stem.0.proj.weight"] *= stays
    assert all(torch.equal(begun[key], fresh[key]) for key in fresh)


# --- runs


def test_stages_reach_the_share_in_equal_steps_of_what_is_left(source):
    run = source[0]
    budget = {"epochs": 2, "lr": 1e-3}
    (once,) = stages.rounds(run, "magnitude", 0.875, 1, budget)
    chain = stages.rounds(run, "magnitude", 0.875, 3, budget, rewind=True)
    assert once.prune_share == chain[-1].prune_share == 0.875
    assert [each.prune_share for each in chain] == pytest.approx([0.5, 0.75, 0.875])
    assert once.initial_identity == f"run:{run.signature}" == chain[0].initial_identity
    assert [each.initial_identity for each in chain[1:]] == [f"run:{each.signature}" for each in chain[:-1]]
    assert all(each.prune_rewind and each.epochs == 2 and each.seed == run.seed for each in chain)


def test_rounds_of_several_seeds_are_one_rung_each():
    runs = []
    for seed in (0, 1, 2):
        first = make_run({**SMALL, "seed": seed})
        runs += [first, *stages.rounds(first, "magnitude", 0.9, 3, {"epochs": 2})]
    called = names(runs)
    by_round = [[called[run.signature] for run in runs[i::4]] for i in range(4)]
    assert all(len(set(own)) == 1 for own in by_round) and len({own[0] for own in by_round}) == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prune_by": "magnitud", "prune_share": 0.5}, "unknown prune_by 'magnitud'; did you mean 'magnitude'?"),
        ({"prune_by": "magnitude"}, "prune_by magnitude does nothing without prune_share"),
        ({"prune_share": 0.5}, "prune_share 0.5 does nothing without prune_by"),
        ({"prune_share": 1, "prune_by": "rank"}, "prune_share 1"),
        ({"prune_rewind": True, "prune_by": "rank", "prune_share": 0.5}, "without prune_by and initial_checkpoint"),
    ],
)
def test_a_mistake_is_one_line(fields, words):
    with pytest.raises(Refusal) as caught:
        make_run(fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prune_by": "rank"}, "prune_by rank: mixer_nano: units can be taken from plain MLPs"),
        ({"prune_by": "rank", "model": "mlp_nano"}, "norm, if any, is behind the activation"),
        ({"prune_by": "locality"}, "prune_by locality: mixer_nano: this model has no weights that read places"),
        (
            {"prune_by": "locality", "model": "lattice_nano", "model_kwargs": {"mixer": "kernel"}},
            "no weights that read",
        ),
    ],
)
def test_a_model_that_has_none_is_refused_before_anything_starts(fields, words):
    with pytest.raises(Refusal) as caught:
        models.preflight(make_run({**fields, "prune_share": 0.5}))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    models.preflight(make_run({"model": "resmlp_nano", "prune_by": "locality", "prune_share": 0.5}))
