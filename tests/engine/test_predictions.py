"""Predictions of record: those of the pass that gave the accuracy, in the order of the images, in a run and a study."""

import numpy as np
import pytest
import torch

from engine import evaluate, models, train
from engine.data.loaders import make_loaders
from engine.data.normalize import make_prepare
from engine.errors import DATA, STOPPED, Refusal
from engine.folder import checkpoint, predictions, store
from engine.folder.predictions import Predictions

SOME = Predictions(np.array([1, 0, 2], "u1"), np.array([1, 1, 2], "u1"))


@pytest.mark.parametrize("changes", [{}, {"holdout": 0.2, "train_samples": None}, {"amp": False, "epochs": 2}])
def test_they_are_those_of_the_weights_and_their_accuracy_is_that_of_record(tiny, how, tmp_path, changes):
    run = tiny.but(**changes)
    train.train(run, tmp_path, how)
    found, acc1 = predictions.read(tmp_path), store.read_json(tmp_path / "status.json")["acc1"]
    assert found.are_of(acc1) and found.acc1 == pytest.approx(acc1, abs=5e-5)
    assert found.prediction.dtype == found.label.dtype == np.uint8

    # By a loop of its own over the weights that were left.
    _, loader, facts = make_loaders(run, how)
    model = models.create(run, facts["num_classes"], 1)
    model.load_state_dict(checkpoint.read(tmp_path / "last.pth.tar")["state_dict"])
    prepare, logits, labels = make_prepare(run, facts, torch.device("cpu")), [], []
    with torch.no_grad():
        for images, batch in loader.epoch(0):
            with torch.autocast("cpu", torch.bfloat16, enabled=run.amp):
                logits.append(model.eval()(prepare(images)).float().numpy())
            labels.append(batch.numpy().copy())
    logits_NC = np.concatenate(logits)  # in bfloat16 several classes may share the first place
    assert (found.label == np.concatenate(labels)).all()
    assert (logits_NC[np.arange(len(logits_NC)), found.prediction] == logits_NC.max(1)).all()
    assert len(found.label) == (500 if not run.holdout else loader.total)


def test_there_is_one_evaluation_an_epoch_and_none_for_them(tiny, how, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(train, "evaluate", lambda *given: passes.append(1) or evaluate.evaluate(*given))
    train.train(tiny, tmp_path, how)
    assert len(passes) == tiny.epochs


def test_a_run_that_was_stopped_after_its_last_evaluation_has_them(tiny, how, tmp_path, monkeypatch):
    def killed(path, *given, **options):
        if path.name == "last.pth.tar":
            raise Refusal("as if killed", STOPPED)
        return export(path, *given, **options)

    train.train(tiny, tmp_path / "whole", how)
    export = train._export
    monkeypatch.setattr(train, "_export", killed)
    with pytest.raises(Refusal, match="as if killed"):
        train.train(tiny, tmp_path / "run", how.model_copy(update={"checkpoint_interval": 3}))
    monkeypatch.setattr(train, "_export", export)
    monkeypatch.setattr(train, "evaluate", lambda *_: pytest.fail("evaluated again"))
    train.train(tiny, tmp_path / "run", how)
    first, second = ((tmp_path / name / predictions.FILE).read_bytes() for name in ("whole", "run"))
    assert first == second


def test_1000_classes_take_two_bytes_each(tmp_path):
    for classes, kind in ((10, "u1"), (256, "u1"), (257, "u2"), (1000, "u2")):
        seen = Predictions(np.array([classes - 1, 0]), np.array([classes - 1, 1]))
        predictions.write(tmp_path, seen, classes)
        found = predictions.read(tmp_path)
        assert found.prediction.dtype == found.label.dtype == np.dtype(kind)
        assert found.prediction.tolist() == [classes - 1, 0] and found.acc1 == 50.0


def test_what_was_seen_is_copied(tmp_path):
    seen, guess, label = predictions.Seen(), torch.tensor([1, 2]), torch.tensor([1, 0])
    seen(guess, label)
    guess.fill_(9), label.fill_(9)
    seen(guess, label)
    assert seen.all().prediction.tolist() == [1, 2, 9, 9] and seen.all().label.tolist() == [1, 0, 9, 9]


def test_a_study_keeps_labels_once_per_set_of_images(tmp_path):
    other = Predictions(np.array([0, 3], "u2"), np.array([300, 3], "u2"))
    twin = Predictions(np.array([0, 0, 0], "u1"), np.array([1, 1, 2], "u1"))
    path = tmp_path / predictions.FILE
    predictions.write_table(path, {"0" * 8: SOME, "1" * 8: other, "2" * 8: twin})
    with np.load(path) as file:
        assert sorted(key.partition("/")[2] for key in file.files) == ["0" * 8, "1" * 8, "2" * 8, "label", "label"]
    found = predictions.read_table(path)
    for key, one in {"0" * 8: SOME, "1" * 8: other, "2" * 8: twin}.items():
        assert (found[key].prediction == one.prediction).all() and (found[key].label == one.label).all()
    before = path.read_bytes()
    predictions.write_table(path, found)
    assert path.read_bytes() == before
    assert predictions.read_table(tmp_path / "none.npz") == {}


def test_damage_is_refused_by_name(tmp_path):
    path = tmp_path / predictions.FILE
    assert predictions.read(tmp_path) is None
    predictions.write_table(path, {"0" * 8: SOME})
    whole = path.read_bytes()
    for data in (whole[:-40], b"", whole.replace(b"/label", b"/lable")):
        path.write_bytes(data)
        with pytest.raises(Refusal, match=r"predictions.npz .*(cannot be read|damaged)") as refusal:
            predictions.read_table(path)
        assert refusal.value.code == DATA
    np.savez(path, **{f"{'0' * 16}/label": SOME.label, f"{'0' * 16}/{'0' * 8}": SOME.prediction})
    with pytest.raises(Refusal, match="labels of another checksum"):
        predictions.read_table(path)
    np.savez(path, prediction=np.zeros(3), label=np.zeros(2))
    with pytest.raises(Refusal, match="not one prediction per label"):
        predictions.read(tmp_path)
