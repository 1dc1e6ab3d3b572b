"""What a machine can do to a sweep without being asked: full disks, no locks, large files, hidden GPUs, no torch."""

import csv
import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from engine import errors
from engine.errors import BUSY, MACHINE, OUTPUT, USAGE, Refusal
from engine.folder import lease, locks, store
from engine.run import Run
from slurm import launch
from slurm.cluster import doctor, snapshot
from slurm.define.load import load
from slurm.queue import claims, collect, local, worker

ROOT = Path(__file__).parents[2]
HEAD = '"""Which one?"""\nfrom engine.run import Run\n'
RUN = {"model": "mixer_nano", "model_kwargs": {"depth": 1}, "epochs": 1, "train_samples": 256}
HOW = {"threads": 1}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def sweep(tmp_path, results):
    path = tmp_path / "mine.py"
    path.write_text(f"{HEAD}def runs():\n for seed in range(3): yield Run(seed=seed, **{RUN!r})\n")
    return load(str(path))


# --- whose fault ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("Found no NVIDIA driver on your system"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ImportError("libcuda.so.1: cannot open shared object file"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("CUDA error is only a word here"), False),
        (KeyError("x"), False),
    ],
)
def test_only_what_is_certain_is_the_machines_fault(error, expected):
    assert errors.of_machine(error) is expected
    assert errors.breaks_process(error) is (expected or "device-side" in str(error))


def test_a_fault_of_the_machine_leaves_the_run_stopped_and_ends_the_worker(sweep, digits, monkeypatch):
    """Stand-in for one call: the first two runs meet CUDA's error, the third trains. Those come last from then on."""
    real, calls = store.read_run, []
    how = {**HOW, "data_dir": str(digits)}
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        store.make_folder(run, folder)

    def broken(*args, **kwargs):
        calls.append(args)
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    with monkeypatch.context() as patch:
        patch.setattr("engine.train.profile", broken)
        for index in (0, 1):
            assert worker.drain(sweep.folders, how, "launch", lambda: 0) == MACHINE
            status = store.read_status(sweep.folders[index])
            assert (status["state"], status["error_class"], status["exit_code"]) == ("stopped", "machine", MACHINE)
            assert f"fault of {lease.node()}: RuntimeError: CUDA error" in status["error"]
    assert len(calls) == 2 and lease.faults(sweep.folders[0], "launch") == [lease.node()]
    order = []
    monkeypatch.setattr("engine.folder.store.read_run", lambda folder: order.append(folder) or real(folder))
    assert worker.drain(sweep.folders, how, "launch", lambda: 0) == 0
    assert list(dict.fromkeys(order)) == [sweep.folders[2], *sweep.folders[:2]]
    assert [store.read_status(folder)["state"] for folder in sweep.folders] == ["done"] * 3


def test_a_local_launch_on_a_broken_machine_ends_and_says_why(sweep, digits, tmp_path):
    """A stand-in for one call, in the workers: a `sitecustomize` makes it raise CUDA's error."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import sys\nif 'submitit.core._submit' in sys.orig_argv:\n    import engine.train\n"
        "    def broken(*args, **kwargs): raise RuntimeError('CUDA error: unspecified launch failure')\n"
        "    engine.train.profile = broken\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path / 'path'}{os.pathsep}{ROOT}"}
    command = [sys.executable, ROOT / "scripts/sweep.py", "launch", tmp_path / "mine.py", "--cluster", "local"]
    command += ["--slots", "1", "--data-dir", digits]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == MACHINE and done.stderr.count("\n") == 1, done
    assert "CUDA error: unspecified launch failure" in done.stderr and "repeat the command" in done.stderr
    assert {store.read_status(folder)["state"] for folder in sweep.folders} <= {"stopped", "planned"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", place], capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_fails_no_run(sweep, small_disk, digits, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(small_disk))
    sweep.__dict__.pop("folders", None)
    sweep.make_folder()
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        store.make_folder(run, folder)
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file:
        free = os.statvfs(small_disk).f_bavail * 4096
        file.write(b"x" * max(0, free - 40_000))  # a run begins, and cannot save
    how = {**HOW, "data_dir": str(digits)}
    assert worker.drain(sweep.folders, how, "launch", lambda: 0) == OUTPUT
    assert "failed" not in {worker.look(folder)["state"] for folder in sweep.folders}
    with pytest.raises(Refusal, match=r"cannot write|can train nothing more") as refusal:
        launch.launch(sweep, how, cluster="debug")
    assert refusal.value.code == OUTPUT
    fill.unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    assert [status["state"] for status in launch.launch(sweep, how, cluster="debug")] == ["done"] * 3


# --- no locks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_flock(monkeypatch):
    """A stand-in for one call: flock answers as on Lustre without `-o flock`."""

    def refuse(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


HOLD = (
    "import errno, fcntl, pathlib, sys, time\n"
    "def refuse(*args): raise OSError(errno.ENOSYS, 'Function not implemented')\n"
    "fcntl.flock = refuse\n"
    "from engine.folder import lease\nfrom slurm.queue import claims\n"
    "kept = lease.claim(pathlib.Path(sys.argv[1]), 'L')\n"
    "with claims.hold(pathlib.Path(sys.argv[1], 'lock')) as file:\n"
    "    claims.write(file, {'pid': 77})\n    print('held', flush=True); time.sleep(600)"
)


def test_without_flock_a_live_owner_is_known_and_a_dead_one_followed(tmp_path, no_flock):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    try:
        with pytest.raises(Refusal, match=f"process {process.pid}") as busy:
            lease.claim(tmp_path)
        assert busy.value.code == BUSY
        assert claims.holder(tmp_path / "lock") == 77
        with claims.hold(tmp_path / "lock") as file:
            assert file is None
    finally:
        process.kill()
        process.wait()
    assert lease.owner(tmp_path) is None and claims.holder(tmp_path / "lock") is None
    with lease.own(tmp_path, "L") as mine, claims.hold(tmp_path / "lock") as file:
        assert mine.number == 2 and file is not None
        assert lease.owner(tmp_path)["pid"] == os.getpid()
    assert lease.owner(tmp_path) is None
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".held", ".partial", ".old")]


def test_a_process_is_told_from_a_later_one_of_its_number():
    own = locks.name()
    assert locks.lives(own) is True
    assert locks.lives(own.rpartition(" ")[0] + " 1@x") is False
    assert locks.lives(own.replace(locks.node(), "elsewhere", 1)) is None
    assert locks.lives("") is None


def test_without_flock_a_sweep_trains(sweep, digits, no_flock):
    statuses = launch.launch(sweep, {**HOW, "data_dir": str(digits)}, cluster="debug")
    assert [status["state"] for status in statuses] == ["done"] * 3


def test_doctor_tries_what_claims_need(tmp_path, monkeypatch):
    assert doctor._locks(tmp_path).fix == "" and "flock works" in doctor._locks(tmp_path).found
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "not permitted")))
        found = doctor._locks(tmp_path)
        assert "no hard links (not permitted)" in found.found and "SOFTMLP_RESULTS" in found.fix
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9)
        assert "ask for NTP" in doctor._locks(tmp_path).fix
    assert not list(tmp_path.iterdir())


# --- the copy of the code ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    place = tmp_path / "checkout"
    place.mkdir()
    (place / "code.py").write_text("x = 1\n")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(place)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(store, "ROOT", place)
    return place


def test_a_large_file_that_git_does_not_know_is_no_code_and_passes_no_memory(checkout, tmp_path, capsys):
    (checkout / "new.py").write_text("y = 2\n")
    with (checkout / "data.bin").open("wb") as file:
        file.truncate(3_000_000_000)  # sparse: it takes no room, and would take 3 GB of memory
    began = time.monotonic()
    copy = snapshot.take(tmp_path / "results")
    assert sorted(path.name for path in copy.iterdir()) == ["COMMIT", "code.py", "new.py", "results"]
    assert (copy / "results").readlink() == checkout / "results", "published tables are those of the checkout"
    assert "jobs get no copy of data.bin (3000 MB)" in capsys.readouterr().out
    assert time.monotonic() - began < 10
    assert snapshot.take(tmp_path / "results") == copy
    (checkout / "new.py").write_text("y = 3\n")
    assert snapshot.take(tmp_path / "results") != copy


def test_copies_that_no_live_job_uses_are_removed_after_a_day(tmp_path):
    code = tmp_path / ".code"
    copies = {name: code / name for name in ("used", "ended", "fresh", "now")}
    for name, path in copies.items():
        path.mkdir(parents=True)
        if name != "fresh":
            os.utime(path, (0, 0))
    for name, job in (("used", "7"), ("ended", "8")):
        place = tmp_path / "sweep" / ".jobs" / name
        place.mkdir(parents=True)
        store.write_json(place / "launch.json", {"snapshot": str(copies[name]), "jobs": [{"id": job}]})
    assert snapshot.prune(tmp_path, {"7"}, copies["now"]) == [copies["ended"]]
    assert sorted(path.name for path in code.iterdir()) == ["fresh", "now", "used"]


# --- tables that are there --------------------------------------------------------------------------------------------


def write_done(run: Run, folder: Path, acc1: float) -> None:
    store.make_folder(run, folder)
    store.write_json(folder / "status.json", {"state": "done", "acc1": acc1})
    store.write_bytes(folder / "summary.csv", store.csv_text([{"epoch": 0, "eval_top1": acc1}]).encode())
    (folder / "probes").mkdir()
    values = {"acc_1": {"value": acc1, "low": 0.0, "high": 1.0, "null": None}}
    store.write_json(folder / "probes" / "shift.json", {"values": values})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_collecting_on_a_machine_with_one_run_keeps_the_rows_of_the_others(sweep, results, capsys):
    import shutil

    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        write_done(run, folder, 90.0 + run.seed)
    tables = collect.collect(sweep)
    published = [path.read_bytes() for path in tables]
    for folder in sweep.folders[:2]:
        shutil.rmtree(folder)
    assert [path.read_bytes() for path in collect.collect(sweep)] == published
    assert "2 rows are kept" in capsys.readouterr().out
    # A run that is trained again, and has not come as far, replaces nothing; one that has does.
    store.make_folder(sweep.runs[0], sweep.folders[0])
    store.write_json(sweep.folders[0] / "status.json", {"state": "stopped", "acc1": 12.0})
    assert [path.read_bytes() for path in collect.collect(sweep)] == published
    shutil.rmtree(sweep.folders[0])
    write_done(sweep.runs[0], sweep.folders[0], 95.0)
    runs, epochs, probes = collect.collect(sweep)
    assert [row["acc1"] for row in rows_of(runs)] == ["95.0", "91.0", "92.0"]
    assert [row["eval_top1"] for row in rows_of(epochs)] == ["95.0", "91.0", "92.0"]
    assert [row["value"] for row in rows_of(probes)] == ["95.0", "91.0", "92.0"]


def test_tables_of_another_scheme_of_signatures_are_not_mixed(sweep, results):
    for run, folder in zip(sweep.runs, sweep.folders, strict=True):
        write_done(run, folder, 90.0)
    runs, *_ = collect.collect(sweep)
    text = runs.read_text()
    for run in sweep.runs:
        text = text.replace(run.signature, run.signature[::-1])
    table = pd.read_csv(runs, dtype=str)
    older = [table.assign(scheme="1"), table.drop(columns="scheme")]
    for changed in (text, *(each.to_csv(index=False) for each in older)):
        runs.write_text(changed)
        with pytest.raises(Refusal, match=r"runs.csv is kept: its 3 rows have other signatures.* move it away"):
            collect.collect(sweep)
        assert runs.read_text() == changed


# --- GPUs, torch, probes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("0,1", ["0", "1"]),
        ("", []),
        ("-1", []),
        ("2,-1,3", ["2"]),
        ("NoDevFiles", []),
        ("GPU-a1-b,3", ["GPU-a1-b", "3"]),
    ],
)
def test_a_choice_of_gpus_is_respected_as_cuda_reads_it(monkeypatch, chosen, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert local.visible_gpus("auto") == expected and local.visible_gpus("cpu") == []


def test_gpus_are_counted_as_cuda_sees_them_and_not_named_after_device_files(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "DEV", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local.visible_gpus("auto") == []
    for name in ("nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert local.visible_gpus("auto") == ["0"], "a container that shows one GPU"
    tool = tmp_path / "nvidia-smi"  # a stand-in for NVIDIA's tool
    said = "GPU 0: NVIDIA A100 (UUID: GPU-aa)\nGPU 1: NVIDIA A100 (UUID: GPU-bb)\n"
    tool.write_text(f"#!/bin/sh\necho '{said}'\n")
    tool.chmod(0o755)
    assert local.visible_gpus("auto") == ["0", "1"]
    tool.write_text(f"#!/bin/sh\necho '{said}  MIG 1g.5gb Device 0: (UUID: MIG-c/1/0)'\n")
    assert local.visible_gpus("auto") == ["MIG-c/1/0"]


@pytest.fixture
def no_torch(tmp_path, monkeypatch):
    """Python as on a login node without torch."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(
        "import importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'timm', 'ffcv'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path / "path")}


def test_planning_needs_no_torch_and_training_here_says_so_in_a_line(sweep, tmp_path, digits, no_torch):
    def script(*words):
        command = [sys.executable, ROOT / "scripts/sweep.py", *words]
        return subprocess.run(command, env=no_torch, capture_output=True, text=True, timeout=120)

    plan = script("plan", tmp_path / "mine.py")
    assert plan.returncode == 0 and "3 to train" in plan.stdout and "not counted: No module" in plan.stderr, plan
    assert "Traceback" not in plan.stderr
    ended = script("launch", tmp_path / "mine.py", "--cluster", "local", "--data-dir", digits)
    assert ended.returncode == MACHINE and "needs torch" in ended.stderr and ended.stderr.count("\n") == 1, ended


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("['shfit']", "PROBES of sweep mine: unknown probe 'shfit'; did you mean 'shift'?"),
        ("'shift'", "PROBES must be a list of names"),
        ("[3]", "PROBES must be a list of names"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "launch"])
def test_an_unknown_probe_is_refused_before_anything_is_trained(sweep, tmp_path, results, given, words, command):
    path = tmp_path / "mine.py"
    path.write_text(f"{path.read_text()}PROBES = {given}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/sweep.py", command, path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == USAGE and words in done.stderr and done.stderr.count("\n") == 1, done
    assert not results.exists()
