"""Sweeps without many processes: reading, claiming and giving up runs, one launch in this process, the script."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.report.assemble import write_report
from engine.errors import BUSY, DIVERGED, USAGE, Refusal
from engine.folder import lease, store
from engine.run import Run
from slurm import launch
from slurm.define.load import load, names
from slurm.queue import claims, local, progress, worker
from slurm.queue.collect import collect

ROOT = Path(__file__).parents[2]
HEAD = '"""Which one?\n\nMore words."""\nfrom engine.run import Run\n'


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def write(tmp_path):
    """Write a sweep's file; returns its path as a string."""

    def write(body: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD + body)
        return str(path)

    return write


def script(*words: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts/sweep.py", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# --- reading a sweep --------------------------------------------------------------------------------------------------


def test_every_sweep_of_the_folder_loads():
    assert "demo" in names()
    for name in names():
        try:
            sweep = load(name)
        except Refusal as refusal:  # a study whose rates are still being tuned says so (tests/slurm/test_lattice.py)
            wanted = {"lattice": "no learning rate for lattice_s", "removal": "no layers are chosen yet"}
            assert wanted[name.partition("_")[0]] in str(refusal)
            continue
        assert sweep.name == name and sweep.question and sweep.runs


def test_order_is_kept_and_repeats_are_dropped(write, results):
    sweep = load(write("def runs():\n for seed in (2, 0, 2, 1): yield Run(seed=seed)\n"))
    assert [run.seed for run in sweep.runs] == [2, 0, 1]
    assert (sweep.name, sweep.question, sweep.dropped) == ("mine", "Which one?", 1)
    assert sweep.folder == results / "mine"
    assert [folder.parent for folder in sweep.folders] == [results / "runs"] * 3


def test_two_runs_of_one_signature_are_refused(write, monkeypatch):
    monkeypatch.setattr(Run, "signature", "01234567")
    with pytest.raises(Refusal, match=r"sweep mine: two different runs have the signature 01234567"):
        load(write("def runs():\n yield Run(seed=0)\n yield Run(seed=1)\n"))


ONE = "def runs(): yield Run(model='mixer_nano')\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", r"it has no function runs\(\)"),
        ("def runs(): return []", r"runs\(\) gave no run"),
        ("def runs(): pass", r"runs\(\) gave no run"),
        ("def runs(): yield {'seed': 1}", r"runs\(\) gave \{'seed': 1\}, which is not a Run"),
        ("def runs(): yield Run(modle='mixer_nano')", r"unknown key 'modle'; did you mean 'model'\? .*line 5"),
        ("def runs(): yield Run(lr=-1)", r"lr -1: .*greater than 0.*line 5"),
        ("def runs(): yield Run(model='mixer_nan')", r"unknown model 'mixer_nan'; close: mixer_nano"),
        ("def runs():\n    yield 1 / 0", r"ZeroDivisionError: division by zero .*line 6"),
        ("def runs() yield", r"SyntaxError: .*line 5"),
        (
            ONE + "CONTRASTS = {'a': {'mixer_nan': 1}}",
            r"CONTRASTS 'a': unknown rung 'mixer_nan'; did you mean 'mixer_n",
        ),
        (ONE + "CONTRASTS = {'a': {'mixer_nano': 1}}", r"CONTRASTS 'a': the weights must have the sum 0"),
        (ONE + "CONTRASTS = {'a': {'mixer_nano': 'x'}}", r"CONTRASTS 'a': the weights must have the sum 0"),
        (ONE + "CONTRASTS = {'a': {'mixer_nano': float('nan')}}", r"CONTRASTS 'a': the weights must have the sum 0"),
        (ONE + "BASELINE = 'mixer_nan'", r"BASELINE: unknown rung 'mixer_nan'; did you mean 'mixer_nano'"),
        (ONE + "BASELINE = 3", r"BASELINE must be the name of a rung, or several, and is 3"),
        (
            "def runs():\n    return [*(Run(lr=lr) for lr in (1e-3, 4e-3)), Run(model='mlp_nano')]\n"
            "CONTRASTS = {'a': {'mixer_nano': 1, 'mlp_nano': -1}}",
            r"'mixer_nano' was trained in 2 ways; name the one .*'mixer_nano lr=0.001', 'mixer_nano lr=0.004'",
        ),
        (ONE + "FAMILIES = {'a': {'b': 1}}", r"FAMILIES must map names to engine.fields.claims.Family"),
        (ONE + "STOPPING = ((0.5, 'a'), (0.4, 'b'))", r"STOPPING must rise to math.inf"),
        (ONE + "CONTRASTS = ['a']", r"CONTRASTS must map names to \{rung: weight\}"),
        ("def runs():\n    seed = 0\n    while True: yield Run(seed=seed)", r"more than"),
    ],
)
def test_a_faulty_sweep_is_refused_by_name(write, monkeypatch, body, words):
    monkeypatch.setattr("slurm.define.load.MAX_RUNS", 100)
    with pytest.raises(Refusal, match=rf"sweep mine: .*{words}") as refusal:
        load(write(body))
    assert refusal.value.code == USAGE and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dmo", "did you mean 'demo'"),
        ("../sweeps/demo", "unknown sweep"),
        ("/etc/passwd", "unknown sweep"),
        ("", "unknown sweep"),
        ("-demo", "unknown sweep"),
        ("__init__", "unknown sweep"),
        ("a\nb", "unknown sweep"),
        ("nowhere/x.py", "there is no sweep file"),
    ],
)
def test_a_name_is_an_address_and_nothing_else(name, words):
    with pytest.raises(Refusal, match=words) as refusal:
        load(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("stem", ["runs", "published", "a-b", "a b", "x" * 65])
def test_a_sweep_cannot_take_the_place_of_other_results(write, stem):
    with pytest.raises(Refusal, match="cannot be called"):
        load(write("def runs(): yield Run()", name=stem))


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_held_file_tells_its_holder(tmp_path):
    path = tmp_path / "lock"
    assert claims.holder(path) is None
    with claims.hold(path) as file:
        assert claims.holder(path) == 0
        claims.write(file, {"pid": 12})
        assert claims.holder(path) == 12
        with claims.hold(path) as second:
            assert second is None
    assert claims.holder(path) is None
    with claims.hold(path) as file:
        assert file is not None


def test_there_are_as_many_places_as_slots(tmp_path):
    with claims.slot(tmp_path, 2) as first, claims.slot(tmp_path, 2) as second, claims.slot(tmp_path, 2) as third:
        assert (first, second, third) == (0, 1, None)
        assert claims.workers(tmp_path) == {os.getpid(): ""}
        worker.work(["nowhere"], {}, jobs=str(tmp_path), launch="", slots=2, gpus=[])  # finds no place and leaves
    assert claims.workers(tmp_path) == {}


def test_the_next_run_is_one_that_nobody_has(write, results):
    sweep = load(write("def runs():\n for seed in range(5): yield Run(seed=seed)"))
    done, failed, cancelled, held, free = sweep.folders
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        store.make_folder(run, folder)
    store.write_json(done / "status.json", {"state": "done"})
    store.write_json(failed / "status.json", {"state": "failed"})
    store.write_json(cancelled / "status.json", {"state": "stopped", "error_class": "cancelled"})
    store.write_json(free / "status.json", {"state": "running"})
    left = list(sweep.folders)
    with lease.own(held):
        assert worker.look(held)["owner"]["pid"] == os.getpid()
        assert worker.look(held)["state"] == "running", "before it has said a word itself"
        assert worker._next(left, "") == (free, False)
    assert left == [held, free], "what ended is not looked at again"
    assert worker._next(left, "") == (held, False)
    (held / "status.json").write_text("{")  # damaged: not to be trained over
    assert worker._next(left, "") == (free, False)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '"x"',
        "{}x",
        '{"state": "odd"}',
        '{"state": 3}',
        '{"state": "done", "acc1": "high"}',
        "\x00",
        None,
    ],
)
def test_a_damaged_status_is_a_failure_in_one_line(tmp_path, text):
    path = tmp_path / "status.json"
    path.mkdir() if text is None else path.write_text(text)
    status = worker.look(tmp_path)
    assert status["state"] == "failed" and status["error_class"] == "checkpoint"
    assert str(path) in status["error"] and "\n" not in status["error"]


def die(folder: Path, launch_id: str, step: int) -> int:
    """One attempt that reaches a step and ends without a word; the deaths counted before it."""
    deaths = lease.deaths(folder, launch_id)
    lease.claim(folder, launch_id)._file.close()  # as the kernel does for a process that is killed
    store.write_json(folder / "status.json", {"state": "running", "step": step})
    return deaths


def test_silent_deaths_are_counted_while_no_step_is_gained(tmp_path):
    assert [die(tmp_path, "first", step) for step in (10, 20, 20, 15, 30, 30)] == [0, 0, 0, 1, 2, 0]
    assert die(tmp_path, "first", 30) == 1
    assert die(tmp_path, "second", 30) == 0, "what ended with its launch is not the run's fault"


def test_a_run_that_keeps_dying_is_given_up(write, results):
    sweep = load(write("def runs(): yield Run()"))
    (folder,) = sweep.folders
    store.make_folder(sweep.runs[0], folder)
    for _ in range(1 + worker.MAX_DEATHS + 1):  # the first one gained its steps
        die(folder, "launch", 5)
    worker.drain(sweep.folders, {}, "launch", lambda: 0)
    status = store.read_status(folder)
    assert (status["state"], status["error_class"], status["exit_code"]) == ("failed", "signal", 137)
    assert "died 4 times" in status["error"] and status["step"] == 5


def test_a_run_that_is_stopped_again_and_again_before_its_first_step_is_given_up(write, results):
    sweep = load(write("def runs(): yield Run()"))
    (folder,) = sweep.folders
    store.make_folder(sweep.runs[0], folder)
    for _ in range(worker.MAX_IDLE + 1):
        with lease.own(folder, "launch"):
            store.write_json(folder / "status.json", {"state": "stopped", "error_class": "preempted", "step": 0})
    assert lease.deaths(folder, "launch") == 0
    worker.drain(sweep.folders, {}, "launch", lambda: 0)
    status = store.read_status(folder)
    assert (status["state"], status["error_class"]) == ("failed", "timeout")
    assert "raise timeout_min" in status["error"]


# --- a launch in this process -----------------------------------------------------------------------------------------

# The middle one diverges at once: its crash must not end the others.
THREE = """
def runs():
    for seed, lr in enumerate((1e-3, 1e30, 1e-3)):
        yield Run(model="mixer_nano", model_kwargs={"depth": 1}, seed=seed, lr=lr, epochs=2, train_samples=256)
"""


@pytest.fixture
def launched(write, results, digits, capsys):
    sweep = load(write(THREE))
    statuses = launch.launch(sweep, {"data_dir": str(digits), "threads": 1}, cluster="debug")
    return sweep, statuses, capsys.readouterr().out


def test_a_failed_run_does_not_end_the_others(launched, digits, capsys):
    sweep, statuses, out = launched
    assert [status["state"] for status in statuses] == ["done", "failed", "done"]
    assert statuses[1]["exit_code"] == DIVERGED
    assert "\x1b" not in out and "\r" not in out, "a log has no control characters"
    assert len(re.findall(r"^[\d:]+  \d/3  mixer_nano depth=1 lr=\S+ s\d (?:done|failed)", out, re.M)) == 3

    before = (sweep.folders[0] / "status.json").read_bytes()
    again = launch.launch(sweep, {"data_dir": str(digits)}, cluster="debug")
    assert [status["attempt"] for status in again] == [1, 1, 1], "nothing is trained a second time"
    assert capsys.readouterr().out == ""
    again = launch.launch(sweep, {"data_dir": str(digits), "threads": 1}, cluster="debug", retry=True)
    assert [status["attempt"] for status in again] == [1, 2, 1], "except what failed, on request"
    assert (sweep.folders[0] / "status.json").read_bytes() == before

    runs, epochs, predicted = collect(sweep)
    assert predicted.name == "predictions.npz"
    rows = list(csv.DictReader(runs.open()))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert list(rows[0])[: 3 + len(Run.model_fields)] == ["signature", "folder", "rung", *Run.model_fields]
    assert json.loads(rows[0]["model_kwargs"]) == {"depth": 1}
    assert rows[1]["acc1"] == "" and rows[1]["error_class"] == "diverged", "what is missing is empty, not 0"
    summary = store.read_summary(sweep.folders[2])
    assert float(rows[2]["acc1"]) == summary[-1]["eval_top1"]
    assert int(rows[2]["macs"]) * 2 == int(rows[2]["flops"])
    rows = list(csv.DictReader(epochs.open()))
    assert [(row["seed"], row["epoch"]) for row in rows] == [("0", "0"), ("0", "1"), ("2", "0"), ("2", "1")]

    numbers = {"value": 61.5, "low": 60.0, "high": 63.0, "null": None}
    (sweep.folders[2] / "probes").mkdir()
    store.write_json(sweep.folders[2] / "probes" / "shift.json", {"values": {"acc_1": numbers}})
    probes = collect(sweep)[2]
    (row,) = csv.DictReader(probes.open())
    assert (row["signature"], row["probe"], row["key"]) == (sweep.runs[2].signature, "shift", "acc_1")
    assert [row[key] for key in numbers] == ["61.5", "60.0", "63.0", ""]


def test_published_tables_and_figures_outlive_a_checkout_without_runs(write, results):
    sweep = load(write(THREE))
    (sweep.folder / "figures").mkdir(parents=True)
    kept = [sweep.folder / "runs.csv", sweep.folder / "figures" / "gaps.svg"]
    for path in kept:
        path.write_text("signature,state\n01234567,done\n")
    before = [path.read_bytes() for path in kept]
    with pytest.raises(Refusal, match="no run of mine is here"):
        collect(sweep)
    write_report(sweep.name, sweep.folders, results, sweep.question, sweep.runs)
    assert [path.read_bytes() for path in kept] == before


def test_a_second_launcher_is_refused(write, results, digits):
    sweep = load(write(THREE))
    sweep.make_folder()
    with local.only_launcher(sweep), pytest.raises(Refusal, match=f"process {os.getpid()}") as refusal:
        launch.launch(sweep, {"data_dir": str(digits)}, cluster="local")
    assert refusal.value.code == BUSY


def test_time_left_is_known_only_from_what_was_measured():
    running = {"state": "running", "eta_s": 10.0, "seconds": 20.0}
    done, planned = {"state": "done", "seconds": 40.0}, {"state": "planned"}
    assert progress.seconds_left([planned], 2) is None
    assert progress.seconds_left([done], 2) is None
    assert progress.seconds_left([running, planned], 1) == 10 + 30
    assert progress.seconds_left([running, planned, done], 1) == 10 + 40
    assert progress.seconds_left([running, running, done], 2) == 10
    assert [progress.duration(s) for s in (None, 12.4, 75, 7500)] == ["-", "12 s", "1 min 15 s", "2 h 5 min"]


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--help",), ("launch", "--help"), ("plan", "demo"), ("status", "demo")])
def test_what_only_reads_imports_nothing_heavy(words, results, tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['sweep.py', *{words!r}]\n"
        f"try: runpy.run_path({str(ROOT / 'scripts/sweep.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end\n"
        "heavy = {'torch', 'timm', 'ffcv', 'submitit', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert not results.exists(), "reading writes nothing"


def test_plan_and_status_from_any_folder_and_as_a_module(write, results, tmp_path):
    plan = script("plan", write(THREE), cwd=tmp_path)
    assert plan.returncode == 0 and "3 runs: 0 done, 3 to train" in plan.stdout, plan
    command = [sys.executable, "-m", "scripts.sweep", "status", "mine.py", "--state", "planned"]
    status = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert status.returncode == 0 and "mine: 3 planned" in status.stdout, status


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("launch", "dmo"), "softmlp: unknown sweep 'dmo'; did you mean 'demo'?"),
        (("launch", "demo", "--slots", "0"), "'0' is not a whole number from 1"),
        (("launch", "demo", "--slot", "2"), "unknown flag '--slot'; did you mean --slots?"),
        (("launch", "demo", "--cluster", "moon"), "unknown cluster 'moon'; known: auto, local"),
        (("launch", "demo", "--device", "gpu"), "device 'gpu'"),
        (("status", "demo", "--state", "lost"), "invalid choice: 'lost'"),
        ((), "required"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, line, results):
    ended = script(*words)
    assert ended.returncode == USAGE and line in ended.stderr, ended
    assert ended.stderr.count("\n") == 1 and not ended.stdout and not results.exists()


def test_workers_that_cannot_start_end_the_launch(write, results, digits, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'submitit.core._submit' in sys.orig_argv:\n"
        "    print('no Python today', flush=True)\n"
        "    os._exit(1)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    ended = script("launch", write(THREE), "--data-dir", str(digits), "--slots", "1", env=env)
    assert ended.returncode == 1, ended
    assert "3 workers ended before they took a run; the last one said: no Python today" in ended.stderr
    assert ended.stderr.count("\n") == 1
