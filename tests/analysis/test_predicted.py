"""Tables of what runs predicted: variances of seeds and images, and shared errors, from folders and from a table."""

import numpy as np
import pandas as pd
import pytest

from analysis.factorial import images, predicted
from engine.fields.claims import Contrast, Family
from engine.folder import predictions
from engine.folder.predictions import Predictions
from tests.analysis.test_images import draw

FAMILY = {"pairs": Family({"a to b": Contrast({"b": 1, "a": -1}), "a to c": Contrast({"c": 1, "a": -1})}, 1.0)}


@pytest.fixture
def study(tmp_path):
    """Two cells of three seeds that err on other images, one cell of one seed; frame, and who was right."""
    rng, rows, right = np.random.default_rng(0), [], {}
    label = np.arange(300) % 10
    for cell, seeds in (("a", 3), ("b", 3), ("c", 1)):
        right[cell] = draw(rng, seeds, 300, shared=rng.normal(0, 2, 300))
        for seed, one in enumerate(right[cell]):
            folder = tmp_path / f"{cell}{seed}"
            folder.mkdir()
            seen = Predictions(np.where(one, label, (label + 1) % 10), label)
            predictions.write(folder, seen, 10)
            rows.append({"rung": cell, "folder": folder, "signature": folder.name, "acc1": seen.acc1})
    return pd.DataFrame(rows).assign(holdout=0.0, table=""), right


def test_numbers_are_those_of_the_runs(study):
    frame, right = study
    parts, shared = predicted.sheets(frame, FAMILY)
    assert [row[0] for row in parts.rows] == ["a", "b", "all, pooled"]
    own = images.split(right["a"])
    assert parts.data.loc[0, "total"] == pytest.approx(own.total) and parts.rows[0][1] == "3"
    assert parts.rows[0][2] == f"{own.total**0.5:.3f}"
    both = (own.total + images.split(right["b"]).total) / 2
    assert parts.data.loc[2, "total"] == pytest.approx(both) and parts.rows[2][1] == "4 df"
    assert [row[0] for row in shared.rows] == ["a to b"]  # c has one seed
    kappas = [images.kappa(one, other) for one in right["a"] for other in right["b"]]
    assert shared.data.loc[0, "between"] == pytest.approx(np.mean(kappas))
    assert shared.data.loc[0, "low"] > 0


def test_a_run_without_predictions_takes_its_rung_out(study):
    frame, _ = study
    (frame.loc[0, "folder"] / predictions.FILE).unlink()
    assert [*predicted.right(frame)] == ["b"]
    (frame.loc[4, "folder"] / predictions.FILE).unlink()
    assert predicted.sheets(frame, FAMILY) == []


def test_predictions_of_a_published_table_count(study, tmp_path):
    frame, right = study
    found = {row.signature: predictions.read(row.folder) for row in frame.itertuples()}
    predictions.write_table(tmp_path / predictions.FILE, found)
    there = frame.assign(table=str(tmp_path / "runs.csv"), folder=tmp_path / "gone")
    assert {name: each.tolist() for name, each in predicted.right(there).items()} == {
        name: right[name].tolist() for name in ("a", "b")
    }
