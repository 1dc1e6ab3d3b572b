"""Probes of trained models: exact values of classifiers that are known, the nulls and intervals, and what runs keep."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import archs
from analysis.bias import probe_runs, probe_table
from analysis.bias.probe import Subject, by_chance, over_images
from analysis.compare import frames
from analysis.probes import patch_shuffle, permutation_gap, shift
from analysis.probes.receptive_field import randomise
from engine.errors import CHECKPOINT, USAGE
from engine.folder import checkpoint, store
from engine.run import make_run
from engine.train import train
from tests import warm

PROBED = ["patch_shuffle", "shift"]  # of the runs below; each other probe has tests of its own


class Reads(nn.Module):
    """A classifier given as a function of the image."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, x_BCHW):
        return self.read(x_BCHW)


def noise(count, size, chans=1):
    return torch.randn(count, chans, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def judged_by_itself(model, x_BCHW, num_classes, patch_size, batch=7):
    """A subject whose labels are the model's own answers, so that its accuracy is 100 %."""
    with torch.no_grad():
        labels = model(x_BCHW).argmax(1)
    batches = list(zip(x_BCHW.split(batch), labels.split(batch), strict=True))
    return Subject(model, batches, x_BCHW.shape[-1], num_classes, patch_size)


def random_weights(name, x_BCHW, **kwargs):
    """A model with random weights, its mean logits over x taken away: else it gives all images the same class."""
    model = randomise(archs.create(name, img_size=x_BCHW.shape[-1], in_chans=x_BCHW.shape[1], **kwargs)).double().eval()
    with torch.no_grad():
        mean = model(x_BCHW).mean(0)
    return Reads(lambda x: model(x) - mean)


def test_shift_is_numpys_reflection():
    x = noise(5, 6, 2)
    down, right = torch.tensor([0, 1, -2, 5, -5]), torch.tensor([0, -3, 4, -5, 1])
    moved = shift.shift(x, down, right)
    for i in range(5):
        padded = np.pad(x[i].numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect")
        top, left = 5 - int(down[i]), 5 - int(right[i])
        assert np.array_equal(moved[i].numpy(), padded[:, top : top + 6, left : left + 6])


@pytest.mark.parametrize("k", [2, 4])
def test_blocks_are_shuffled_as_ordered(k):
    x, index = noise(3, 8, 2), np.arange(3)
    order, side = patch_shuffle.orders(index, k, draw=1), 8 // k
    assert (order.sort(1).values == torch.arange(k * k)).all() and len({tuple(row) for row in order.tolist()}) == 3
    y = patch_shuffle.shuffle_blocks(x, k, order)
    for i in range(3):
        for place, block in enumerate(order[i].tolist()):
            (a, b), (c, d) = (((n // k) * side, (n % k) * side) for n in (place, block))
            assert torch.equal(y[i, :, a : a + side, b : b + side], x[i, :, c : c + side, d : d + side])


def test_blocks_stay_in_their_quadrant_and_every_order_is_as_likely():
    order = patch_shuffle.orders(np.arange(6000), 4, draw=0, within_quadrant=True).numpy()
    place = np.arange(16)
    quadrant = 2 * (place // 8) + place % 4 // 2
    assert (np.sort(order, 1) == place).all() and (quadrant[order] == quadrant).all()
    counts = np.unique(order[:, [0, 1, 4, 5]], axis=0, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3
    free = patch_shuffle.orders(np.arange(6000), 2, draw=0).numpy()
    assert stats.chisquare(np.unique(free, axis=0, return_counts=True)[1]).pvalue > 1e-3


def test_draws_depend_on_the_images_number_alone():
    whole, part = patch_shuffle.orders(np.arange(40), 4, 0), patch_shuffle.orders(np.arange(30, 40), 4, 0)
    assert torch.equal(whole[30:], part)
    x = noise(40, 8)
    model = random_weights("mixer_nano", x)
    for module in (shift, patch_shuffle):
        assert module.measure(judged_by_itself(model, x, 10, 2, 40)) == module.measure(
            judged_by_itself(model, x, 10, 2, 3)
        )


def test_chance_is_the_mean_over_all_pairings():
    rng = np.random.default_rng(0)
    predicted, target = rng.integers(0, 3, (2, 50)), rng.choice(4, 50, p=[0.5, 0.3, 0.1, 0.1])
    turned = [100 * (predicted == np.roll(target, r)).mean() for r in range(50)]  # each pair of places comes once
    assert by_chance(predicted, target, 4) == pytest.approx(np.mean(turned))


def test_the_interval_is_scipys_bca_and_covers():
    rng = np.random.default_rng(1)
    scores = 100 * (rng.random((300, 2)) < [0.9, 0.5])

    def ratio(means):
        return (means[..., 1] - 10) / (means[..., 0] - 10)

    mine = over_images(scores, ratio, 0.0)
    theirs = stats.bootstrap(
        list(scores.T),
        lambda a, b, axis: (b.mean(axis) - 10) / (a.mean(axis) - 10),
        paired=True,
        n_resamples=5000,
        rng=0,
    ).confidence_interval
    assert mine.value == pytest.approx((scores[:, 1].mean() - 10) / (scores[:, 0].mean() - 10))
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)

    drawn = 100 * (rng.random((200, 400, 1)) < 0.8)
    ends = [over_images(each, lambda means: means[..., 0], 0.0)[1:3] for each in drawn]
    covered = sum(low <= 80 <= high for low, high in ends)
    assert 180 <= covered <= 199  # of 200 at 95 %: 190 +- 3 standard deviations of 3.1


def test_shift_of_classifiers_that_are_known():
    """One bright pixel on black. Its column stays in half of the four directions; its parity also under even steps."""
    places = [(3, 3), (4, 4), (3, 4), (4, 3)]
    x = torch.zeros(4, 1, 8, 8)
    for i, (row, column) in enumerate(places):
        x[i, 0, row, column] = 1

    column = shift.measure(judged_by_itself(Reads(lambda x: x.sum((1, 2))), x, 8, 2))
    assert {key: value.value for key, value in column.items()} == {
        "acc": 100, **dict.fromkeys([f"{what}_{d}" for what in ("acc", "consistency") for d in (1, 2, 3, 4)], 50),
        "consistency_pair": column["consistency_pair"].value, "alignment": 0, "peak": 0,
    }  # fmt: skip
    assert column["acc_1"].low == column["acc_1"].high == 50, "every image has the same score"

    parity = Reads(lambda x: torch.stack([x[..., ::2].sum((1, 2, 3)), x[..., 1::2].sum((1, 2, 3))], 1))
    parity = shift.measure(judged_by_itself(parity, x, 2, 2))
    assert [parity[f"consistency_{d}"].value for d in (1, 2, 3, 4)] == [50, 100, 50, 100]
    assert (parity["alignment"].value, parity["alignment"].null, parity["peak"].value) == (50, 0, 50)

    flat = shift.measure(judged_by_itself(Reads(lambda x: x.flatten(1)), x, 64, None))
    assert flat["acc_1"].value == 0 and "peak" not in flat and "acc_3" not in flat


@pytest.mark.parametrize("size, patch_size, cuts", [(8, 2, [2, 4]), (32, 4, [2, 4, 8])])
def test_a_bag_of_patches_is_forced_to_ignore_their_order(size, patch_size, cuts):
    x = noise(60, size, 3)
    model = random_weights("identityformer_nano", x, patch_size=patch_size)
    found = patch_shuffle.measure(judged_by_itself(model, x, 10, patch_size))
    assert found["acc_2"].null < 40, "the classes differ"
    ways = [str(k) for k in cuts] + [f"quadrant_{k}" for k in cuts[1:]]
    assert all(found[f"R_{way}"][:3] == (1, 1, 1) and found[f"consistency_{way}"].value == 100 for way in ways)
    assert found["area"][:3] == (1, 1, 1) and found["area"].null < 0.6
    assert set(found) == {"acc", "area"} | {f"{what}_{way}" for what in ("acc", "consistency", "R") for way in ways}


def test_a_mixer_is_not_forced_to_and_chance_is_the_floor():
    x = noise(300, 8)
    found = patch_shuffle.measure(judged_by_itself(random_weights("mixer_nano", x), x, 10, 2))
    assert found["R_4"].high < 0.8 and found["area"].high < 0.9
    # A classifier that reads one corner: a shuffle brings any block there, one time in 16 its own.
    corner = Reads(lambda x: x[..., :2, :2].flatten(1))
    found = patch_shuffle.measure(judged_by_itself(corner, noise(300, 8), 4, 2))
    assert found["acc_4"].value == pytest.approx(100 * (1 / 16 + 15 / 16 / 4), abs=5)
    assert found["R_4"].value == pytest.approx(1 / 16, abs=0.07) and found["R_4"].null == pytest.approx(0, abs=0.03)
    assert found["area"].value == pytest.approx((1 / 2 + found["R_2"].value + found["R_4"].value / 2) / 2)


def test_what_is_not_better_than_chance_retains_nothing_that_can_be_said():
    images = [(noise(20, 8), torch.arange(20) % 2)]
    found = patch_shuffle.measure(Subject(Reads(lambda x: torch.eye(2)[[0] * len(x)]), images, 8, 2, 2))
    assert found["acc"].value == 50 and math.isnan(found["R_2"].value) and math.isnan(found["area"].low)


# --- trained runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Folders of four short runs on the digits, by a word for each."""
    from engine.run import make_how

    results, how = tmp_path_factory.mktemp("results"), make_how({"data_dir": digits, "threads": 1})
    base = {"epochs": 8, "batch_size": 64, "lr": 4e-3}
    runs = {
        "flat": {"model": "bmlp_nano"},
        "flat permuted": {"model": "bmlp_nano", "permute": "pixels"},
        "convolution": {"model": "convmixer_nano"},
        "bag": {"model": "identityformer_nano", "holdout": 0.1, "amp": True},
    }
    folders = {}
    for word, fields in runs.items():
        run = make_run({**base, **fields})
        folders[word] = store.folder_of(run, results)
        train(run, folders[word], how)
        assert probe_runs.probe(folders[word], PROBED, how) == PROBED
    return folders


def values(folder, name):
    return {
        key: each["value"]
        for key, each in json.loads((folder / "probes" / f"{name}.json").read_text())["values"].items()
    }


@pytest.mark.parametrize("word", ["flat", "flat permuted", "convolution"])
def test_the_plain_view_has_the_accuracy_of_the_run(trained, word):
    found = {name: values(trained[word], name) for name in PROBED}
    for name in found:
        assert found[name]["acc"] == pytest.approx(store.read_summary(trained[word])[-1]["eval_top1"])


def test_trained_models_differ_as_their_biases_say(trained):
    flat, convolution = (values(trained[word], "shift") for word in ("flat", "convolution"))
    assert convolution["acc_1"] - flat["acc_1"] > 8
    assert convolution["peak"] > 5
    bag, flat = (values(trained[word], "patch_shuffle") for word in ("bag", "flat"))
    assert bag["R_2"] == bag["R_4"] == bag["area"] == 1 and bag["acc"] == bag["acc_4"] > 30
    assert flat["R_2"] < 0.4 and flat["R_4"] < 0.1


def test_a_run_with_a_holdout_is_probed_on_all_test_images(trained):
    assert json.loads((trained["bag"] / "probes" / "shift.json").read_text())["images"] == 500


def test_probing_again_measures_only_what_changed(trained, tmp_path, how):
    folder = tmp_path / trained["flat"].name
    folder.mkdir()
    for name in ("args.yaml", "last.pth.tar"):
        (folder / name).write_bytes((trained["flat"] / name).read_bytes())
    assert probe_runs.probe(folder, ["shift"], how) == ["shift"]
    before = (folder / "probes" / "shift.json").read_bytes()
    assert before == (trained["flat"] / "probes" / "shift.json").read_bytes(), "the same weights, the same bytes"
    assert probe_runs.probe(folder, ["shift", "patch_shuffle"], how) == ["patch_shuffle"]
    file = checkpoint.read(folder / "last.pth.tar")
    file["state_dict"]["head.bias"] += torch.arange(10.0)
    checkpoint.write(folder / "last.pth.tar", file)
    assert probe_runs.probe(folder, ["shift"], how) == ["shift"]
    assert (folder / "probes" / "shift.json").read_bytes() != before


def test_load_has_a_row_per_run_probe_and_key(trained):
    frame = probe_table.load(list(trained.values()))
    assert list(frame.columns) == probe_table.COLUMNS
    own = frame[(frame["folder"] == trained["flat"]) & (frame["probe"] == "shift")].set_index("key")
    assert own["value"].to_dict() == values(trained["flat"], "shift")
    assert (own["low"] <= own["value"]).all() and (own["value"] <= own["high"]).all()
    gap = frame[frame["probe"] == "permutation_gap"].set_index("key")
    accuracy = [store.read_summary(trained[word])[-1]["eval_top1"] for word in ("flat", "flat permuted")]
    assert gap.loc["pixels", "value"] == pytest.approx(accuracy[0] - accuracy[1])
    assert gap.loc["pixels_relative", "value"] == pytest.approx((accuracy[0] - accuracy[1]) / (accuracy[0] - 10))
    assert gap["folder"].tolist() == [trained["flat"]] * 2 and (gap["rung"] == own["rung"].iloc[0]).all()

    one = probe_table.summary(frame).set_index(["rung", "probe", "key"]).loc[(own["rung"].iloc[0], "shift", "acc_1")]
    assert (one["n"], one["value"], one["low"]) == (1, own.loc["acc_1", "value"], own.loc["acc_1", "low"])
    seeds = own.loc[["acc_1"] * 3].assign(key="acc_1", value=[50.0, 52.0, 57.0]).reset_index(drop=True)
    three = probe_table.summary(seeds).iloc[0]
    assert (three["low"], three["high"]) == pytest.approx(stats.t.interval(0.95, 2, 53, stats.sem([50, 52, 57])))
    two = probe_table.summary(seeds[:2]).iloc[0]
    assert (two["n"], two["value"], two["low"], two["high"]) == (2, 51, 50, 52), "both seeds, and no interval"
    high = probe_table.summary(seeds.assign(value=[99.0, 100.0, 99.6])).iloc[0]
    low = stats.t.interval(0.95, 2, 298.6 / 3, stats.sem([99.0, 100.0, 99.6]))[0]
    assert (high["low"], high["high"]) == (pytest.approx(low), 100), "agreement and accuracy end at 100 %"


def test_the_permutation_gap_is_paired_by_seed_and_recipe(tmp_path):
    def write(acc1, state="done", **fields):
        run = make_run({"model": "mixer_nano", "epochs": 2, **fields})
        folder = store.folder_of(run, tmp_path)
        store.make_folder(run, folder)
        store.write_json(folder / "status.json", {"state": state})
        store.write_bytes(folder / "summary.csv", store.csv_text([{"epoch": 1, "eval_top1": acc1}]).encode())
        return folder

    original, shuffled = [96.0, 97.0, 95.0, 90.0], [95.9, 97.1, 94.7]
    folders = [write(acc, seed=seed) for seed, acc in enumerate(original)]
    folders += [write(acc, seed=seed, permute="pixels") for seed, acc in enumerate(shuffled)]
    folders += [write(20.0, seed=3, permute="pixels", state="failed"), write(20.0, seed=0, permute="pixels", lr=0.1)]
    row = permutation_gap.table(frames.load(folders)).iloc[0]
    gaps = np.subtract(original[:3], shuffled)
    assert (row.permute, row.n, row.n_missing) == ("pixels", 3, 1)
    assert (row.gap, row.p) == pytest.approx((gaps.mean(), stats.ttest_1samp(gaps, 0).pvalue))
    sides = [
        stats.ttest_1samp(gaps, sign * 0.5, alternative=word).pvalue for sign, word in ((1, "less"), (-1, "greater"))
    ]
    assert row.p_same == row.p_same_holm == pytest.approx(max(sides)), "one rung is a family of one"
    assert row.relative == pytest.approx(np.mean(gaps / (np.array(original[:3]) - 10)))
    assert row.gap - row.gap_half == pytest.approx(stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))[0])


def script(*args):
    return warm.run("-m", "scripts.probe", *args)


def test_the_command_prints_a_table_per_probe(trained, digits):
    done = script(*trained.values(), "--data-dir", digits, "--threads", "1", "--probe", *PROBED)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already there") == 4
    words = ("shift", "patch_shuffle", "permutation_gap", "convmixer_nano", "1.00 [1.00, 1.00], null ")
    assert all(word in done.stdout for word in words), done.stdout


def test_mistakes_are_one_line(trained, tmp_path):
    run = make_run({"model": "mixer_nano"})
    store.make_folder(run, store.folder_of(run, tmp_path))
    for code, words, args in (
        (USAGE, "did you mean 'shift'?", (trained["flat"], "--probe", "shfit")),
        (USAGE, "unknown sweep 'dmo'", ("dmo",)),
        (USAGE, "name the runs", ("--probe", "shift", trained["flat"])),
        (USAGE, "has no args.yaml", (tmp_path / "nowhere",)),
        (CHECKPOINT, "is finished; train", (store.folder_of(run, tmp_path),)),
    ):
        done = script(*args)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1) and words in done.stderr, done.stderr
