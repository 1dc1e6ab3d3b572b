"""A study outlives the machine it began on: what a published table has as done is done, everywhere it is asked."""

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from analysis.compare import frames
from analysis.report.assemble import write_report
from engine.errors import DATA, TERMINATED, Refusal
from engine.folder import lease, published, store
from engine.run import Run
from slurm import launch
from slurm.define import plan
from slurm.define.sweep import Sweep
from slurm.queue import states, tables
from slurm.queue.choose import choose
from slurm.queue.collect import collect

TINY = {"model": "mixer_nano", "model_kwargs": {"depth": 1, "dim": 16}, "epochs": 1, "train_samples": 256}


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """Results beside a checkout that has its own."""
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "away"))
    shutil.copytree(store.ROOT / "results" / "published", tmp_path / "checkout" / "results" / "published")
    monkeypatch.setattr(store, "ROOT", tmp_path / "checkout")
    return tmp_path / "checkout"


@pytest.fixture
def sweep(checkout) -> Sweep:
    return Sweep("mine", "Which?", tuple(Run(seed=seed, **TINY) for seed in range(4)))


def row(run: Run, state: str = "done", **more) -> dict[str, object]:
    numbers = {"epoch": 1, "acc1": 90.0 + run.seed, "best_acc1": 95.5, "images_per_s": 500.0, "seconds": 20.0}
    fields = {"signature": run.signature, "folder": run.name, "rung": run.rung, "seed": run.seed, "scheme": run.scheme}
    return {**fields, "state": state, **numbers, "attempt": 2, **more}


def publish(folder: Path, *rows: dict[str, object]) -> Path:
    store.write_bytes(_made(folder) / "runs.csv", store.csv_text(rows).encode())
    return folder / "runs.csv"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def states_of(sweep: Sweep) -> list[str]:
    return [status["state"] for status in tables.standing(sweep)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(sweep: Sweep, how, **more) -> list[dict]:
    given = {"data_dir": str(how.data_dir), "threads": 1}
    return launch.launch(sweep, given, cluster="debug", **more)


def test_rows_of_this_scheme_that_are_done_count_and_no_others(sweep, checkout):
    assert states_of(sweep) == ["planned"] * 4, "without a table"
    first, second, third, fourth = sweep.runs
    rows = [row(first), row(second, "failed", acc1=""), row(third, scheme=1), row(fourth, acc1="")]
    path = publish(sweep.folder, *rows)
    assert states_of(sweep) == ["done", "planned", "planned", "planned"]
    status = tables.standing(sweep)[0]
    assert (status["acc1"], status["seconds"], status["epoch"], status["table"]) == (90.0, 20.0, 1, str(path))
    publish(sweep.folder, *({key: value for key, value in each.items() if key != "scheme"} for each in rows))
    assert states_of(sweep) == ["planned"] * 4, "a table without the column is of the first scheme"
    path.unlink()
    publish(checkout / "results" / "mine", *rows)
    assert states_of(sweep) == ["done", "planned", "planned", "planned"], "that of the checkout, too"
    publish(sweep.folder, row(second))
    assert states_of(sweep) == ["done", "done", "planned", "planned"]


def test_a_run_of_two_studies_is_done_by_the_table_of_either_whose_own_goes_first(sweep, checkout):
    first, second, third, _ = sweep.runs
    other = publish(sweep.folder.parent / "another", row(first, acc1=50.0), row(second, acc1=50.0))
    publish(checkout / "results" / "third", row(third, acc1=60.0))
    for name, text in (("mistaken", "run,acc1\n1,2\n"), ("binary", "\0\x93PNG")):
        (sweep.folder.parent / name).mkdir()
        (sweep.folder.parent / name / "runs.csv").write_bytes(text.encode("latin-1"))
    assert states_of(sweep) == ["done", "done", "done", "planned"], "what is no table says nothing, without a refusal"
    publish(sweep.folder, row(first))
    assert [status.get("acc1") for status in tables.standing(sweep)] == [90.0, 50.0, 60.0, None]
    frame = frames.of_sweep(sweep)
    assert frame["acc1"].tolist()[:3] == [90.0, 50.0, 60.0] and frame["table"][1] == str(other)
    assert published.places_of([sweep]) == [sweep.folder, checkout / "results" / "mine"], "its own: speeds, choices"


def test_a_table_that_cannot_be_read_is_refused_by_name(sweep):
    publish(sweep.folder, {"run": 1})
    with pytest.raises(Refusal, match=r"mine/runs.csv is no table with a column signature, state") as refusal:
        tables.standing(sweep)
    assert refusal.value.code == DATA


def test_a_folder_wins_where_the_run_is_done_in_it_or_is_being_trained(sweep):
    publish(sweep.folder, *map(row, sweep.runs))
    for run, folder, state in zip(sweep.runs, sweep.folders, ("done", "running", "failed", "stopped"), strict=True):
        store.make_folder(run, folder)
        store.write_json(folder / "status.json", {"state": state, "acc1": 1.0, "error_class": "oom", "error": "x"})
    with lease.own(sweep.folders[1]):
        statuses = states.standing(sweep)
    assert [status["state"] for status in statuses] == ["done", "running", "done", "done"]
    assert [status["acc1"] for status in statuses] == [1.0, 1.0, 92.0, 93.0]
    assert [status["note"].partition("; ")[2] for status in statuses[2:]] == ["here failed", "here stopped"]
    assert states.summary(statuses) == "1 running, 3 done (2 by table)"


def test_a_launch_trains_what_neither_folder_nor_table_has(sweep, how, capsys):
    publish(sweep.folder, *map(row, sweep.runs[:2]))
    statuses = train(sweep, how)
    assert [status["state"] for status in statuses] == ["done"] * 4 and statuses[0]["table"]
    assert [folder.exists() for folder in sweep.folders] == [False, False, True, True]
    assert "mine: 2 of 4 runs done (2 by table), 2 to train" in capsys.readouterr().out
    again = train(sweep, how)
    assert [status["attempt"] for status in again] == [2, 2, 1, 1] and not capsys.readouterr().out

    # The study goes on in the table: old rows and new ones.
    runs, *_ = collect(sweep)
    assert [float(each["acc1"]) for each in rows_of(runs)] == [
        *(90.0, 91.0),
        *(store.read_summary(folder)[-1]["eval_top1"] for folder in sweep.folders[2:]),
    ]
    shutil.rmtree(sweep.folders[2].parent)
    assert states_of(sweep) == ["done"] * 4

    # All of it can be trained anew, and folders alone then tell.
    statuses = train(sweep, how, kinds={"published"})
    assert [status["attempt"] for status in statuses] == [1] * 4
    assert all(store.is_done(folder) for folder in sweep.folders)


def test_a_stop_while_published_runs_are_trained_anew_is_no_end(sweep, how, monkeypatch):
    publish(sweep.folder, *map(row, sweep.runs))
    monkeypatch.setattr(launch, "Stop", lambda: _Stopped())
    with pytest.raises(Refusal, match="stopped with 0 of 4 runs done") as refusal:
        train(sweep, how, kinds={"published"})
    assert refusal.value.code == TERMINATED


class _Stopped:
    """A SIGTERM that came at once."""

    def on(self, codes):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self) -> int:
        return TERMINATED


def test_choosing_by_kind(sweep):
    publish(sweep.folder, *map(row, sweep.runs[:2]))
    store.make_folder(sweep.runs[1], sweep.folders[1])
    store.write_json(sweep.folders[1] / "status.json", {"state": "failed"})
    kinds = {"unfinished": {2, 3}, "failed": set(), "published": {0, 1}, "cancelled": set()}
    assert {kind: set(choose(sweep, {kind}).places) for kind in kinds} == kinds
    choose(sweep, {"published"}).release()
    assert states_of(sweep)[1] == "done" and store.read_status(sweep.folders[1])["state"] == "stopped"


def test_weights_to_start_from_are_in_no_table(checkout, tmp_path):
    first = Run(**TINY)
    second = first.but(initial_checkpoint=str(store.folder_of(first)), seed=1)
    third = second.but(initial_checkpoint=str(store.folder_of(second)), seed=2)
    sweep = Sweep("mine", "Which?", (first, second, third))
    publish(sweep.folder, row(first))
    assert states_of(sweep) == ["planned"] * 3, "the second needs the first one's folder"
    publish(sweep.folder, row(first), row(second))
    assert states_of(sweep) == ["planned"] * 3, "the third needs the second one's, and that the first one's"
    publish(sweep.folder, row(first), row(second), row(third))
    assert states_of(sweep) == ["done"] * 3


def test_plan_says_how_many_are_done_by_table(sweep):
    publish(sweep.folder, *map(row, sweep.runs[:3]))
    store.make_folder(sweep.runs[0], sweep.folders[0])
    store.write_json(sweep.folders[0] / "status.json", {"state": "done", "acc1": 1.0})
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(plan.table(sweep))
    assert re.search(r"4 runs: 3 done \(2 by table\), 1 to train", console.export_text())


def test_tables_tell_of_runs_that_are_not_here_in_comparison_and_report(sweep, checkout):
    """Three rows of the checkout, one run here: four seeds, in the table, the report and what is planned."""
    publish(checkout / "results" / "mine", *(row(run, train_loss=0.1 * run.seed) for run in sweep.runs))
    store.make_folder(sweep.runs[3], sweep.folders[3])
    store.write_json(sweep.folders[3] / "status.json", {"state": "done", "acc1": 97.0})
    epochs = [{"epoch": 0, "train_loss": 0.7, "eval_top1": 97.0}]
    store.write_bytes(sweep.folders[3] / "summary.csv", store.csv_text(epochs).encode())
    frame = frames.of_sweep(sweep)
    assert frame["acc1"].tolist() == [90.0, 91.0, 92.0, 97.0] and set(frame["state"]) == {"done"}
    assert frame["train_loss"].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.7])
    (rung,) = frames.rungs(frame).to_dict("records")
    assert rung["n"] == 4 and rung["train_loss"] == pytest.approx(0.25)
    assert frames.cells(frames.rungs(frame))[0][6] == "0.25"
    assert frames.load(sweep.folders, sweep.runs)["acc1"].notna().sum() == 1, "folders alone"
    page = write_report(sweep.name, sweep.folders, sweep.folder.parent, sweep.question, sweep.runs).read_text()
    assert "92.50" in page, "the mean of all four"


def test_a_report_is_made_of_tables_alone(sweep, checkout):
    """With and without the curves, which are in epochs.csv."""
    path = publish(checkout / "results" / "mine", *map(row, sweep.runs))
    given = (sweep.name, sweep.folders, sweep.folder.parent, sweep.question, sweep.runs)
    page = write_report(*given).read_text()
    assert "91.50" in page and 'id="curve' not in page
    curves = [
        {"signature": run.signature, "epoch": epoch, "train_loss": 1.0, "eval_loss": 1.0, "eval_top1": 80.0 + epoch}
        | {"eval_top5": 99.0, "lr": 0.001}
        for run in sweep.runs
        for epoch in range(2)
    ]
    path.with_name("epochs.csv").write_text(store.csv_text(curves))
    frame = frames.of_sweep(sweep)
    assert frames.curves(frame)["eval_top1"].tolist() == [80.0, 81.0] * 4
    assert 'id="curve' in write_report(*given).read_text()


def test_collecting_away_from_the_checkout_takes_its_rows_over(sweep, checkout, how):
    publish(checkout / "results" / "mine", *map(row, sweep.runs[:3]), row(Run(seed=77), scheme=1))
    train(sweep, how)
    runs, *_ = collect(sweep)
    assert runs == sweep.folder / "runs.csv"
    assert [each["seed"] for each in rows_of(runs)] == ["0", "1", "2", "3"]
    assert [each["state"] for each in rows_of(runs)] == ["done"] * 4
    before = runs.read_bytes()
    assert collect(sweep)[0].read_bytes() == before
