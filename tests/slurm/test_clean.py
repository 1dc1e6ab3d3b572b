"""Cleaning frees what it says, asks first, and leaves whatever a table, a resume or another run needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.folder import store
from engine.run import make_run
from slurm import clean
from slurm.define.load import load
from tests.reports import write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"
FILE = '"""Which?"""\nfrom engine.run import Run\ndef runs():\n    for seed in (0, 1): yield Run(epochs=2, seed=seed)\n'
KEPT = ("last.pth.tar", "weights-epoch-1.pth.tar", "predictions.npz", "probes/shift.json")


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Two runs; every file that a run may have, of a hundred bytes."""
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    (tmp_path / "which.py").write_text(FILE)
    made = load(str(tmp_path / "which.py"))
    made.make_folder()
    for run in made.runs:
        folder = write_run(store.results_dir(), run, 50.0)
        (folder / "probes").mkdir()
        for name in (*KEPT, "model_best.pth.tar", "checkpoint-000000009.pth.tar"):
            (folder / name).write_bytes(b"x" * 100)
    (made.jobs_folder / "launch").mkdir()
    (made.jobs_folder / "launch" / "1_0_log.out").write_bytes(b"x" * 100)
    return made


def script(tmp_path: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, SCRIPT, "clean", tmp_path / "which.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


def test_what_is_said_goes_and_the_rest_stays(sweep, tmp_path):
    told = "remove checkpoints (2, 0.0 MB), best (2, 0.0 MB), jobs (1, 0.0 MB)"
    before = {path for folder in sweep.folders for path in folder.rglob("*")}
    assert script(tmp_path) == (2, f"softmlp: this would {told}; add --yes\n")
    assert {path for folder in sweep.folders for path in folder.rglob("*")} == before
    found = clean.find(sweep)
    assert {kind: clean.size(paths) for kind, paths in found.items()} == {"checkpoints": 200, "best": 200, "jobs": 100}
    assert script(tmp_path, "--yes") == (0, told.replace("remove", "removed") + "\n")
    gone = before - {path for folder in sweep.folders for path in folder.rglob("*")}
    assert {path.name for path in gone} == {"model_best.pth.tar", "checkpoint-000000009.pth.tar"} and len(gone) == 4
    assert not list(sweep.jobs_folder.glob("*/")) and all((sweep.folders[0] / name).exists() for name in KEPT)
    assert script(tmp_path, "--yes")[1].startswith("nothing to remove")


def test_a_run_that_can_go_on_keeps_all_and_the_logs_of_its_jobs(sweep):
    store.write_json(sweep.folders[0] / "status.json", {"state": "failed"})
    found = clean.find(sweep)
    assert found["checkpoints"] == [sweep.folders[1] / "checkpoint-000000009.pth.tar"]
    assert found["best"] == [sweep.folders[1] / "model_best.pth.tar"] and not found["jobs"]


def test_weights_that_a_planned_run_starts_from_stay(sweep):
    best = sweep.folders[0] / "model_best.pth.tar"
    later = make_run({"initial_checkpoint": str(best), "mode": "linear", "epochs": 1})
    store.make_folder(later, store.folder_of(later))
    assert clean.find(sweep, ["best"])["best"] == [sweep.folders[1] / best.name]
    store.write_json(store.folder_of(later) / "status.json", {"state": "done"})
    assert best in clean.find(sweep, ["best"])["best"]


def test_a_launcher_at_work_keeps_its_folder(sweep):
    from slurm.queue import claims

    with claims.slot(sweep.jobs_folder, 1):
        assert not clean.find(sweep)["jobs"]
    assert clean.find(sweep)["jobs"]
