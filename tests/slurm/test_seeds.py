"""A sweep with other seeds: the same rungs, contrasts and needs; runs that are there already; a folder of its own."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import Refusal
from engine.folder import store
from engine.run import Run
from slurm.define import seeds
from slurm.define.load import load
from slurm.queue import tables
from slurm.queue.collect import collect
from tests.reports import write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"
FILE = '''"""Which?"""
from engine.run import Run
CONTRASTS = {"deeper": {"mixer_nano depth=2": 1, "mixer_nano depth=1": -1}}
def runs():
    for seed in (0, 3):
        for depth in (1, 2):
            yield Run(model="mixer_nano", model_kwargs={"depth": depth}, epochs=2, seed=seed)
def resources(run): return {"mem_gb": run.model_kwargs["depth"]}
'''


@pytest.fixture
def path(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    (tmp_path / "which.py").write_text(FILE)
    return str(tmp_path / "which.py")


def finish(run: Run, acc1: float) -> None:
    path = write_run(store.results_dir(), run, acc1) / "status.json"
    store.write_json(path, store.read_json(path) | {"acc1": acc1})


def test_every_run_has_every_seed_and_the_rest_of_the_file_holds(path):
    sweep = load(f"{path}@2-4,7")
    assert sweep.name == "which@2-4_7" and sweep.folder.name == sweep.name
    assert [(run.seed, run.model_kwargs["depth"]) for run in sweep.runs] == [
        (s, d) for s in (2, 3, 4, 7) for d in (1, 2)
    ]
    assert [need["mem_gb"] for need in sweep.needs] == [1, 2] * 4
    assert sweep.contrasts == load(path).contrasts
    assert load(f"{path}@2-4_7").runs == sweep.runs, "the name is the address"
    own = {run.signature for run in load(path).runs if run.seed == 3}
    assert own == {run.signature for run in sweep.runs if run.seed == 3}


@pytest.mark.parametrize("text", ["", "5-1", "1,,2", "-1", "1-", "a", "0-99999", "4294967296"])
def test_what_is_no_list_of_seeds_is_refused(text):
    with pytest.raises(Refusal, match="is no list of seeds; write 0-9"):
        seeds.parse(text)


def test_one_spelling():
    assert seeds.told(seeds.parse("7,2-4,3")) == "2-4_7" and seeds.told((5,)) == "5"
    assert seeds.parse(seeds.told((0, 1, 2, 9))) == (0, 1, 2, 9)


def test_runs_that_start_from_one_another_are_left_to_their_file(path):
    """The second run's weights are of the first one, of seed 0; of which run would those of seed 5 be?"""
    two = "    first = Run()\n    yield first\n    yield Run(initial_checkpoint=f'x/{first.name}', mode='linear')\n"
    Path(path).write_text(f'"""Which?"""\nfrom engine.run import Run\ndef runs():\n{two}')
    assert len(load(path).runs) == 2
    with pytest.raises(Refusal, match="start from the weights of others among them"):
        load(f"{path}@0-4")


def test_runs_of_the_sweeps_own_table_are_done_and_its_other_rows_stay_there(path):
    sweep, other = load(path), load(f"{path}@3-4")
    for index in range(len(sweep.runs)):
        finish(sweep.runs[index], 50.0 + index)
    collect(sweep)
    for folder in sweep.folders:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert [status["state"] for status in tables.standing(other)] == ["done", "done", "planned", "planned"]
    finish(other.runs[2], 70.0)
    collect(other)
    with (other.folder / "runs.csv").open() as file:
        rows = {row["signature"]: row["acc1"] for row in csv.DictReader(file)}
    assert rows.keys() == {run.signature for run in other.runs}
    assert float(rows[other.runs[0].signature]) == 52.0 and float(rows[other.runs[2].signature]) == 70.0
    assert store.results_dir() / "which" == sweep.folder


def test_the_flag_is_the_name(path):
    def said(*words: str) -> str:
        done = subprocess.run([sys.executable, SCRIPT, "plan", *words], capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    assert f"next: python scripts/sweep.py launch {path}@0-1_5" in said(path, "--seeds", "0-1,5")
    assert "3 runs" in said("--grid", "lr=1e-3", "--seeds", "0-2")
    assert "no list of seeds" in said(path, "--seeds", "x")
