"""What a study keeps: tables and predictions from folders, merged with what was published, of which nothing is lost."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import published
from analysis.bias import emergence
from analysis.compare import contrasts, frames
from analysis.report.assemble import write_report
from engine.errors import DATA, Refusal
from engine.folder import predictions, store
from engine.folder.predictions import Predictions
from engine.run import Run
from slurm.define.sweep import Sweep
from slurm.queue.collect import collect
from tests.reports import plain, section

LABEL = np.arange(200, dtype="u1") % 10


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Sweep:
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return Sweep("mine", "Which?", tuple(Run(seed=seed) for seed in range(3)))


def guessed(wrong: int) -> Predictions:
    return Predictions(np.where(np.arange(200) < wrong, (LABEL + 1) % 10, LABEL).astype("u1"), LABEL)


def write_done(run: Run, folder: Path, wrong: int, loss: float = 0.25, said: int | None = None) -> None:
    """A finished run with so many mistakes on 200 images; its file of predictions may say another number."""
    store.make_folder(run, folder)
    acc1 = 100 - wrong / 2
    store.write_json(folder / "status.json", {"state": "done", "acc1": acc1, "seconds": 5.0})
    more = {"eval_loss": 1.0, "eval_top5": 99.0, "lr": 0.1}
    rows = [{"epoch": 0, "train_loss": 2.0, "eval_top1": 1.0}, {"epoch": 1, "train_loss": loss, "eval_top1": acc1}]
    rows = [row | more for row in rows]
    store.write_bytes(folder / "summary.csv", store.csv_text(rows).encode())
    predictions.write(folder, guessed(wrong if said is None else said), 10)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wrong_of(sweep: Sweep) -> list[int]:
    found = published.predictions(sweep.folder)
    return [int((~found[run.signature].right).sum()) if run.signature in found else -1 for run in sweep.runs]


def test_predictions_and_training_loss_are_collected(sweep):
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        write_done(run, folder, 10 + run.seed, loss=0.5 + run.seed)
    written = collect(sweep)
    assert [path.name for path in written] == ["runs.csv", "epochs.csv", "predictions.npz"]
    assert [row["train_loss"] for row in rows_of(written[0])] == ["0.5", "1.5", "2.5"]
    assert wrong_of(sweep) == [10, 11, 12]
    assert {one.checksum for one in published.predictions(sweep.folder).values()} == {guessed(0).checksum}
    before = written[2].read_bytes()
    assert collect(sweep)[2].read_bytes() == before


def test_weights_among_the_results_are_named_by_their_place_there(sweep):
    """A run's folder, whose results another machine has elsewhere; other weights keep the path that was given."""
    start = sweep.folders[0]
    write_done(sweep.runs[0], start, 10)
    later = sweep.runs[0].but(lr=0.5, initial_checkpoint=str(start))
    study = Sweep("mine", "Which?", (sweep.runs[0], later))
    write_done(later, study.folders[1], 9)
    cells = [row["initial_checkpoint"] for row in rows_of(collect(study)[0])]
    assert cells == ["", f"runs/{start.name}"] and later.initial_checkpoint == str(start)


def test_collecting_takes_over_what_another_study_knows_of_its_runs_and_nothing_else(sweep):
    """Two of three runs were trained for another study, which has a fourth; the third is here."""
    stranger = sweep.runs[0].but(seed=9)
    other = Sweep("another", "Which?", (*sweep.runs[:2], stranger))
    for run, folder in zip(other.runs, other.folders, strict=True):
        write_done(run, folder, 10 + run.seed)
    collect(other)
    shutil.rmtree(other.folders[0].parent)
    write_done(sweep.runs[2], sweep.folders[2], 12)
    written = collect(sweep)
    assert [row["signature"] for row in rows_of(written[0])] == [run.signature for run in sweep.runs[:3]]
    assert wrong_of(sweep) == [10, 11, 12] and len(rows_of(written[1])) == 2 * 3, "epochs and predictions, too"


def test_published_predictions_outlive_their_folders_and_give_way_to_a_run_that_is_finished_here(sweep):
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        write_done(run, folder, 10 + run.seed)
    collect(sweep)
    for folder in sweep.folders[:2]:
        shutil.rmtree(folder)
    collect(sweep)
    assert wrong_of(sweep) == [10, 11, 12]
    store.make_folder(sweep.runs[0], sweep.folders[0])
    store.write_json(sweep.folders[0] / "status.json", {"state": "stopped", "acc1": 12.0})
    predictions.write(sweep.folders[0], guessed(176), 10)
    collect(sweep)
    assert wrong_of(sweep) == [10, 11, 12]
    shutil.rmtree(sweep.folders[0])
    write_done(sweep.runs[0], sweep.folders[0], 30)
    collect(sweep)
    assert wrong_of(sweep) == [30, 11, 12]


def test_a_comparison_over_images_is_the_same_from_folders_and_from_what_was_collected(sweep):
    """In numbers: two rungs, two seeds, differences of 10 of 200 images in each."""
    runs = [run.but(model=model) for run in sweep.runs[:2] for model in ("mixer_nano", "mlp_nano")]
    study = Sweep("mine", "Which?", tuple(runs))
    for index, (run, folder) in enumerate(zip(study.runs, study.folders, strict=True)):
        write_done(run, folder, 20 + 10 * (index % 2))
    columns = ["diff", "low", "high", "examples"]
    here = contrasts.against(frames.load(study.folders, study.runs))[columns]
    assert here["examples"].tolist() == [0, 200] and here["diff"].tolist()[1] == -5.0
    assert here["low"][1] < -5.0 < here["high"][1]
    collect(study)
    shutil.rmtree(study.folders[0].parent)
    there = contrasts.against(frames.of_sweep(study))[columns]
    pd.testing.assert_frame_equal(here, there)


def write_probe(run: Run, folder: Path, gap: float) -> None:
    """`tiling` after epochs 0, 1 and 2, twice as large each time; of whole images, whose shuffled twin loses `gap`."""

    def values(epoch: int) -> dict[str, dict[str, float | None]]:
        value = gap * 2.0**epoch
        return {"tiling_change": {"value": value, "low": value - 0.1, "high": None, "null": 0.5}} if epoch else {}

    (folder / "probes").mkdir()
    found = {"values": values(2), "epochs": {"0": {"tiling": {"value": 1.0, "low": 0, "high": 2, "null": 0.5}}}}
    found["epochs"]["1"] = values(1)
    store.write_json(folder / "probes/tiling.json", found)


def test_probes_over_training_are_the_same_from_folders_and_from_what_was_collected(sweep, tmp_path):
    """And so is the page's section on them, whose numbers rank the rungs as their gaps do."""
    runs = [
        sweep.runs[0].but(model="bmlp_nano", model_kwargs={"depth": depth}, permute=permute, epochs=2)
        for depth in range(1, 6)
        for permute in ("none", "pixels")
    ]
    study = Sweep("mine", "Which?", tuple(runs))
    for index, (run, folder) in enumerate(zip(study.runs, study.folders, strict=True)):
        gap = 2 * run.model_kwargs.get("depth", 2)
        write_done(run, folder, 20 + gap * (index % 2))
        if run.permute == "none":
            write_probe(run, folder, gap / 2)
    here = emergence.over_training(frames.load(study.folders, study.runs))
    assert len(here) == 5 * 3 and sorted(set(here["epoch"])) == [0, 1, 2]
    told = write_report("mine", study.folders, tmp_path / "page", runs=study.runs).read_text()
    assert [path.name for path in collect(study)][2:4] == ["probes.csv", "emergence.csv"]
    rows = rows_of(study.folder / "emergence.csv")
    assert [(row["key"], row["epoch"]) for row in rows[:2]] == [("tiling", "0"), ("tiling_change", "1")]
    assert len(rows) == 10 and {row["epoch"] for row in rows} == {"0", "1"}, "the end is in probes.csv"
    shutil.rmtree(study.folders[0].parent)
    collected = frames.of_sweep(study)
    pd.testing.assert_frame_equal(here, emergence.over_training(collected), check_dtype=False)
    (rank,) = emergence.against_gap(collected).itertuples()
    assert (rank.key, rank.rungs, rank.runs, round(rank.rho, 9)) == ("tiling_change", 5, 5, 1)
    again = write_report("mine", study.folders, study.folder.parent, runs=study.runs).read_text()
    sections = [plain(section(text, "emerged")) for text in (told, again)]
    assert "Of 1 number of the probes 1 rank runs by their permutation gap" in sections[0]
    assert "rho +1.00 (+1.00, +1.00), over 5 runs of 5 rungs" in sections[0] and "1.3" not in sections[0]
    assert sections[0].split("processor")[0] == sections[1].split("processor")[0]


def test_predictions_that_are_not_those_of_record_are_left_out(sweep, capsys):
    first, second, third = sweep.folders
    write_done(sweep.runs[0], first, 10, said=11)  # such as with --tta
    write_done(sweep.runs[1], second, 20)
    write_done(sweep.runs[2], third, 30)
    (third / "predictions.npz").write_bytes(b"x")
    collect(sweep)
    assert wrong_of(sweep) == [-1, 20, -1]
    out = capsys.readouterr().out
    assert f"{sweep.runs[0].name}: predictions are left out: they have an accuracy 94.5000" in out
    assert "predictions.npz cannot be read" in out
    # Published ones stay only as long as they are of the row that is published.
    (second / "predictions.npz").unlink()
    collect(sweep)
    assert wrong_of(sweep) == [-1, 20, -1]
    shutil.rmtree(second)
    write_done(sweep.runs[1], second, 22)
    (second / "predictions.npz").unlink()
    collect(sweep)
    assert sweep.runs[1].signature not in predictions.read_table(sweep.folder / "predictions.npz")


def test_a_table_that_is_damaged_stops_before_anything_is_written(sweep):
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        write_done(run, folder, 10)
    collect(sweep)
    shutil.rmtree(sweep.folders[0])
    path = sweep.folder / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-9])
    before = (sweep.folder / "runs.csv").stat().st_mtime_ns
    with pytest.raises(Refusal, match=r"predictions.npz cannot be read") as refusal:
        collect(sweep)
    assert refusal.value.code == DATA and (sweep.folder / "runs.csv").stat().st_mtime_ns == before


def test_predictions_of_other_rows_are_refused(sweep):
    assert published.predictions(sweep.folder) == {}
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        write_done(run, folder, 10)
    runs, *_ = collect(sweep)
    text = runs.read_text()
    for changed in (text.replace(",95.0,", ",95.5,", 1), "\n".join(text.splitlines()[:-1]) + "\n"):
        runs.write_text(changed)
        with pytest.raises(Refusal, match=r"does not belong to runs.csv \(.*accuracy 95.0000"):
            published.predictions(sweep.folder)
