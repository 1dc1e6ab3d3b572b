"""Figures of merit against independent computations, and that exactly the samples there are are scored."""

import csv
import functools
import json
import math
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

import archs
from engine import evaluate, metrics
from engine.cli import tables
from engine.data import loaders, normalize
from engine.errors import DATA, OUTPUT, Refusal
from engine.run import make_run
from engine.train import train
from scripts import validate


@pytest.fixture(scope="module")
def guesses():
    """Log-probabilities of 7 classes, labels that follow them, and one class that never occurs."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((500, 7))
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = np.array([rng.choice(6, p=row[:6] / row[:6].sum()) for row in np.exp(logp)])
    return logp, labels


def test_accuracy_and_likelihood_are_sklearns(guesses):
    logp, labels = guesses
    classes = range(7)
    top = metrics.top_k(logp, 5)
    for k in (1, 5):
        expected = sklearn_metrics.top_k_accuracy_score(labels, logp, k=k, labels=classes)
        assert metrics.accuracy(top, labels, k) == pytest.approx(100 * expected, abs=1e-12)
    expected = sklearn_metrics.log_loss(labels, np.exp(logp), labels=classes)
    assert metrics.nll(logp, labels) == pytest.approx(expected, rel=1e-12)
    row = metrics.judge(logp, labels)
    assert list(row) == ["loss", "top1", "top5", "balanced", "ece"] and row["loss"] == metrics.nll(logp, labels)


def test_a_confident_mistake_has_a_finite_price():
    assert metrics.nll(np.array([[0.0, -800.0]]), np.array([1])) == 800


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_confusion_and_the_classes_are_sklearns(guesses):
    logp, labels = guesses
    predicted = logp.argmax(1)
    matrix = metrics.confusion(labels, predicted, 7)
    assert (matrix == sklearn_metrics.confusion_matrix(labels, predicted, labels=range(7))).all()
    recall = sklearn_metrics.recall_score(labels, predicted, labels=range(7), average=None, zero_division=math.nan)
    precision = sklearn_metrics.precision_score(labels, predicted, labels=range(7), average=None)
    rows = metrics.per_class(matrix, "abcdefg")
    np.testing.assert_allclose([row["acc1"] for row in rows], 100 * recall)
    np.testing.assert_allclose([row["precision"] for row in rows], 100 * precision)
    assert sum(row["samples"] for row in rows) == 500 and math.isnan(rows[6]["acc1"])
    assert [row["name"] for row in rows] == [*"abcdefg"]
    balanced = 100 * sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert metrics.balanced_accuracy(predicted, labels) == pytest.approx(balanced)


def test_a_confusion_matrix_is_headed_by_the_names_of_the_classes(tmp_path):
    matrix = np.array([[3, 1], [0, 2]])
    for names, head in ((("cat", "dog"), "label"), (("label", "dog"), "label of")):
        evaluate.write_confusion(matrix, names, tmp_path / "c.csv", tmp_path / "m.csv")
        rows = list(csv.DictReader((tmp_path / "m.csv").open()))
        assert [row[head] for row in rows] == [*names] and [int(row[names[0]]) for row in rows] == [3, 0]
        assert [row["name"] for row in csv.DictReader((tmp_path / "c.csv").open())] == [*names]


def test_calibration_error_by_hand():
    """Confidences 0.9, 0.9, 0.9, 0.6 of which 2 and 1 are right: (3/4) |2/3 - 0.9| + (1/4) |1 - 0.6|."""
    logp = np.log([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.6, 0.4]])
    assert metrics.ece(logp, np.array([0, 1, 1, 0])) == pytest.approx(100 * (0.75 * (0.9 - 2 / 3) + 0.25 * 0.4))
    assert metrics.ece(np.log([[1.0, 1e-300]]), np.array([0])) == 0
    assert metrics.ece(np.log([[1.0, 1e-300]]), np.array([1])) == 100


def test_calibration_error_equals_the_definition(guesses):
    logp, labels = guesses
    confidence, right = np.exp(logp.max(1)), logp.argmax(1) == labels
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.ece(logp, labels) == pytest.approx(100 * expected, rel=1e-9)


def two_classes(count, wrong, gap):
    """Logits (0, gap) for everybody, of whom some are wrong: the best temperature is gap / log(right / wrong)."""
    logp = np.log(1 / (1 + np.exp([[gap, -gap]]))).repeat(count, 0)
    return logp, np.array([0] * wrong + [1] * (count - wrong))


def test_the_temperature_that_fits_is_the_closed_form():
    logp, labels = two_classes(400, 100, gap=4.0)
    temperature = metrics.fit_temperature(logp, labels)
    assert temperature == pytest.approx(4 / math.log(3), rel=1e-3)
    scaled = metrics.scale(logp, temperature)
    assert np.exp(scaled[0, 1]) == pytest.approx(0.75, rel=1e-3)
    assert metrics.ece(scaled, labels) == pytest.approx(0, abs=0.1) and metrics.ece(logp, labels) > 20
    assert (metrics.scale(logp, 1.0) == pytest.approx(logp)) and (metrics.top_k(scaled, 2) == [1, 0]).all()


def test_no_sample_is_scaled_by_a_temperature_that_it_helped_choose():
    first, second = two_classes(200, 50, gap=4.0), two_classes(200, 20, gap=4.0)
    logp = np.stack([first[0], second[0]], 1).reshape(-1, 2)
    labels = np.stack([first[1], second[1]], 1).reshape(-1)
    scaled, temperature = metrics.cross_scale(logp, labels)
    assert np.exp(scaled[0::2, 1]) == pytest.approx(0.9, rel=1e-3)  # what fits the others, of whom 9 in 10 are right
    assert np.exp(scaled[1::2, 1]) == pytest.approx(0.75, rel=1e-3)
    assert temperature == pytest.approx((4 / math.log(3) + 4 / math.log(9)) / 2, rel=1e-3)


def test_real_accuracy_takes_any_of_the_labels_and_leaves_out_images_without():
    sets = [[3], [1, 2], [], [0, 4], []]
    assert metrics.real_accuracy(np.array([3, 2, 0, 1, 9]), sets) == (pytest.approx(200 / 3), 3)
    assert metrics.real_accuracy(np.array([3, 1, 0, 4, 9]), sets) == (100, 3)
    accuracy, count = metrics.real_accuracy(np.array([1]), [[]])
    assert math.isnan(accuracy) and count == 0


def test_label_sets_come_in_the_order_of_the_names(tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[7], [5, 1], [], [2]]))
    names = ["n01/val_00000004.JPEG", "n01/val_00000001.JPEG", "n02/val_00000003.JPEG", "n03/val_00000002.JPEG"]
    assert metrics.read_real(file, names, np.array([2, 7, 0, 5])) == [{2}, {7}, set(), {5, 1}]
    assert metrics.read_real(file, None, np.array([7, 1, 3, 2])) == [{7}, {5, 1}, set(), {2}]


@pytest.mark.parametrize(
    "text, names, labels, words",
    [
        ("[[1], [2]]", None, [1, 2, 3], "has labels of 2 images, not 3"),
        ("[[1], [2]]", None, [2, 1], "in another order; give --raw-dir"),
        ("[[1], [2]]", ["b", "a"], [1, 2], "in another order; give --raw-dir"),
        ("[[1], [2]]", ["b", "a", "c"], [1, 2], "has 3 validation images, the .beton 2"),
        ("[1, 2]", None, [1, 2], "is no list of label lists"),
        ("no", None, [1], "is no list of label lists"),
    ],
)
def test_label_sets_of_other_images_are_refused(tmp_path, text, names, labels, words):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(Refusal, match=words) as caught:
        metrics.read_real(tmp_path / "real.json", names, np.array(labels))
    assert caught.value.code == DATA


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = archs.create("patchmlp_nano")
    torch.nn.init.normal_(model.head.weight)  # as a zero head would give every class the same
    return model


@pytest.fixture
def prepare():
    return normalize.Normalize([77.878], [95.818], torch.device("cpu"))


AUTOCAST = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=False)


@pytest.fixture
def run():
    return make_run({"model": "patchmlp_nano", "batch_size": 64})


def test_predictions_are_of_every_sample_once_and_agree_with_evaluate(run, how, model, prepare):
    _, loader, _ = loaders.make_loaders(run, how)
    model.train()
    logp, labels = evaluate.predict(model, loader, prepare, AUTOCAST)
    assert logp.shape == (500, 10) and 500 % 64 and model.training
    np.testing.assert_allclose(np.exp(logp).sum(1), 1)
    images, expected = zip(*[(images.clone(), labels.clone()) for images, labels in loader.epoch(0)], strict=True)
    assert (labels == torch.cat(expected).numpy()).all()
    with torch.inference_mode():
        alone = model(prepare(torch.cat(images))).double().log_softmax(1)
    np.testing.assert_allclose(logp, alone, atol=1e-4)
    for enabled in (False, True):  # under autocast the logits are bfloat16, and what is made of them is not
        autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=enabled)
        figures = evaluate.evaluate(model, loader, prepare, autocast)
        judged = metrics.judge(*evaluate.predict(model, loader, prepare, autocast))
        assert {key: judged[key] for key in figures} == pytest.approx(figures, rel=1e-6)


def test_sums_over_batches_are_in_float64(run, how, model, prepare):
    """To the last bit: the float32 sum of each batch, added in order. On a GPU the same sums stay there to the end."""
    _, loader, _ = loaders.make_loaders(run, how)
    total = 0.0
    with torch.inference_mode():
        for images, labels in loader.epoch(0):
            total += torch.nn.functional.cross_entropy(model.eval()(prepare(images)), labels, reduction="sum").item()
    assert evaluate.evaluate(model, loader, prepare, AUTOCAST)["loss"] == total / 500


def test_views_of_one_kind_are_that_kind_of_image(run, how, model, prepare):
    """Flipped with certainty, every view is the mirror image, so the mean of three is the prediction for that."""
    _, loader, _ = loaders.make_loaders(run, how)
    images = torch.cat([images.clone() for images, _ in loader.epoch(0)])
    with torch.inference_mode():
        mirrored = model(prepare(images.flip(2))).double().log_softmax(1)
    logp, _ = evaluate.predict(model, evaluate.make_views(run.but(hflip=1.0), how), prepare, AUTOCAST, 3)
    np.testing.assert_allclose(logp, mirrored, atol=1e-4)


def test_the_mean_of_views_is_of_probabilities_and_repeats(run, how, model, prepare):
    """View i is epoch i; the result depends on the seed, and not on the batch size or the number of workers."""
    run = run.but(crop_pad=1, hflip=0.5)
    views = evaluate.make_views(run, how)
    with torch.inference_mode():
        expected = sum(
            torch.cat([model(prepare(images)).double().softmax(1) for images, _ in views.epoch(view)])
            for view in range(4)
        ) / 4  # fmt: skip
    logp, labels = evaluate.predict(model, views, prepare, AUTOCAST, 4)
    np.testing.assert_allclose(np.exp(logp), expected, atol=1e-6)
    _, plain, _ = loaders.make_loaders(run, how)
    assert (labels == torch.cat([labels.clone() for _, labels in plain.epoch(0)]).numpy()).all()
    others = evaluate.make_views(run.but(batch_size=200), how.model_copy(update={"workers": 2}))
    np.testing.assert_allclose(evaluate.predict(model, others, prepare, AUTOCAST, 4)[0], logp, atol=1e-4)
    for change, view_count in (({"seed": 1}, 4), ({}, 3)):
        other = evaluate.predict(model, evaluate.make_views(run.but(**change), how), prepare, AUTOCAST, view_count)[0]
        assert np.abs(other - logp).max() > 1e-3


def test_views_of_a_holdout_are_of_the_images_held_out(run, how, model, prepare):
    run = run.but(holdout=0.1, hflip=1.0, seed=3)
    train_loader, val_loader, _ = loaders.make_loaders(run, how)
    images = torch.cat([images.clone() for images, _ in val_loader.epoch(0)])
    views = evaluate.make_views(run, how)
    assert len(images) == views.num_samples == 1297 - len(train_loader.indices) > 100
    assert (torch.cat([images.clone() for images, _ in views.epoch(0)]) == images.flip(2)).all()


def test_views_without_augmentation_are_refused(run, how):
    with pytest.raises(Refusal, match="has no augmentation"):
        evaluate.make_views(run, how)


def test_a_table_of_results_has_one_header_and_room_for_new_columns(tmp_path):
    table = tmp_path / "r.csv"
    for row in ({"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}, {"a": 3, "c": "x, y"}):
        tables.append_row(table, row)
    assert table.read_text() == 'a,b,c\n1,0.5,\n2,1.5,\n3,,"x, y"\n'
    for row in ({"a": 1}, {"a": math.nan}):
        tables.append_row(tmp_path / "r.json", row)
    assert json.loads((tmp_path / "r.json").read_text()) == [{"a": 1}, {"a": None}]
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(Refusal) as caught:
        tables.append_row(tmp_path / "bad.json", {"a": 1})
    assert caught.value.code == OUTPUT and (tmp_path / "bad.json").read_text() == "{"


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    from engine.run import make_how

    folder = tmp_path_factory.mktemp("run")
    run = make_run(
        {
            "model_kwargs": {"depth": 1, "dim": 16},
            "epochs": 2,
            "batch_size": 64,
            "lr": 5e-3,
            "crop_pad": 1,
            "hflip": 0.1,
        }
    )
    train(run, folder, make_how({"data_dir": digits, "threads": 1}))
    return folder


@pytest.fixture
def validated(digits, trained, monkeypatch, capsys):
    def call(*words):
        command = ["validate", trained, "--data-dir", digits, "--threads", 1, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        validate.main()
        printed = capsys.readouterr().out.split("  ")
        return {key: value for key, _, value in (words.partition(" ") for words in printed)}

    return call


def test_validate_writes_what_it_scored(validated, trained, tmp_path):
    files = {name: tmp_path / f"{name}.csv" for name in ("per-class", "confusion", "predictions", "results-file")}
    printed = validated(*[word for name, path in files.items() for word in (f"--{name}", path)], "--probabilities")
    rows = {name: list(csv.DictReader(path.open())) for name, path in files.items()}
    last = list(csv.DictReader((trained / "summary.csv").open()))[-1]
    assert float(printed["top1"]) == pytest.approx(float(last["eval_top1"]), abs=1e-3)
    assert float(printed["loss"]) == pytest.approx(float(last["eval_loss"]), abs=1e-4)

    predictions = rows["predictions"]
    assert [int(row["index"]) for row in predictions] == list(range(500))
    assert sum(row["label"] == row["prediction"] for row in predictions) == 5 * float(printed["top1"])
    assert sum(row["label"] in row["top5"].split() for row in predictions) == 5 * float(printed["top5"])
    assert all(row["top5"].split()[0] == row["prediction"] for row in predictions)
    probabilities = np.array([[float(row[f"p{c}"]) for c in range(10)] for row in predictions])
    labels = [int(row["label"]) for row in predictions]
    assert -np.log(probabilities[range(500), labels]).mean() == pytest.approx(float(printed["loss"]), abs=1e-3)

    matrix = np.array([[int(row[str(c)]) for c in range(10)] for row in rows["confusion"]])
    assert matrix.sum() == 500 and 100 * matrix.trace() / 500 == pytest.approx(float(printed["top1"]))
    assert [int(row["samples"]) for row in rows["per-class"]] == matrix.sum(1).tolist()
    (result,) = rows["results-file"]
    assert result["checkpoint"] == str(trained / "last.pth.tar") and float(result["ece"]) > 0


def test_validate_averages_views_scales_and_takes_label_sets(validated, tmp_path):
    options = ("--tta", 5, "--temperature", "fit", "--predictions", tmp_path / "p.npz")
    first = validated(*options, "--probabilities")
    with np.load(tmp_path / "p.npz") as arrays:
        saved = {name: arrays[name] for name in arrays}
    assert saved["top5"].shape == (500, 5) and saved["probabilities"].shape == (500, 10)
    assert (saved["probabilities"].argmax(1) == saved["prediction"]).all()
    assert first["tta"] == "5" and float(first["loss_scaled"]) < float(first["loss"])

    # Made-up sets: the label and the next digit; every fifth image has none.
    sets = [[int(y), int(y + 1) % 10] if i % 5 else [] for i, y in enumerate(saved["label"])]
    (tmp_path / "real.json").write_text(json.dumps(sets))
    second = validated("--tta", 5, "-b", 100, "--real", tmp_path / "real.json")
    for key in ("tta", "loss", "top1", "top5"):
        assert float(second[key]) == pytest.approx(float(first[key]), abs=2e-4)
    right = [saved["prediction"][i] in labels for i, labels in enumerate(sets) if labels]
    assert float(second["real"]) == pytest.approx(100 * np.mean(right), abs=1e-3)
    assert int(second["real_samples"]) == 400


def test_validate_averages_over_all_shifts_and_says_what_that_costs(validated):
    words = ("--crop-pad", 4, "--crop-fill", "wrap", "--crop-step", 2, "--hflip", 0)
    once, all_of_them = validated("--tta", 1, *words), validated("--tta", "all", *words)
    assert all_of_them["tta"] == "16" and int(all_of_them["macs"]) == 16 * int(once["macs"]) > 0
    assert all_of_them == validated("--tta", "all", *words, "-b", 77)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tta", 0], "'0' is not a whole number from 1"),
        (["--temperature", "warm"], "neither a number above 0 nor 'fit'"),
        (["--temperature", "-1"], "neither a number above 0 nor 'fit'"),
        (["--tta", "all"], "this run also has hflip; give --hflip 0.0, or --tta N"),
        (["--hflip", 0.5], "--hflip is for the views of --tta"),
        (["--predictions", "p.txt"], "--predictions p.txt ends in '.txt'; known: .npz, .csv"),
        (["--split", "holdout"], "was trained without --holdout"),
    ],
)
def test_validate_refuses_in_one_line(validated, words, message):
    with pytest.raises(Refusal) as caught:
        validated(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
