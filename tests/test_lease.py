"""Two attempts of one run never write at once: claims, takeovers and the fence, with real processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from engine import lease, store
from engine.errors import BUSY, SUPERSEDED, Refusal
from engine.train import train

HOLD = (
    "import pathlib, sys, time\nfrom engine import lease\n"
    "kept = lease.claim(pathlib.Path(sys.argv[1]), 'L')\nprint('held', flush=True); time.sleep(600)"
)


def hold(folder, **env):
    """A process that owns a folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    assert process.stdout.readline() == "held\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_live_owner_is_named_and_a_dead_one_followed(tmp_path):
    process = hold(tmp_path)
    try:
        with pytest.raises(Refusal, match=f"being trained by process {process.pid}") as caught:
            lease.claim(tmp_path)
        assert caught.value.code == BUSY
        assert lease.owner(tmp_path)["pid"] == process.pid
    finally:
        kill(process)
    assert lease.owner(tmp_path) is None
    with lease.own(tmp_path) as mine:
        assert mine.number == 2 and lease.owner(tmp_path)["pid"] == os.getpid()
    assert lease.owner(tmp_path) is None


def _race(folder, start, outcome):
    start.wait()
    try:
        kept = lease.claim(folder)
        outcome.put(kept.number)
        time.sleep(1.0)
    except Refusal as refusal:
        outcome.put(0 if refusal.code == BUSY else -1)


def test_of_many_that_claim_at_once_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    start, outcome = context.Barrier(8), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, start, outcome)) for _ in range(8)]
    for racer in racers:
        racer.start()
    assert sorted(outcome.get(timeout=20) for _ in racers) == [0] * 7 + [1]
    for racer in racers:
        racer.join()
    assert len(list(tmp_path.glob(".attempt-*"))) == 1, "a partial file was left"


def test_an_owner_on_another_node_lives_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 5.0)
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 0.5)
    process = hold(tmp_path, SLURMD_NODENAME="elsewhere")
    kill(process)  # nobody here can know that
    with pytest.raises(Refusal, match=f"process {process.pid} on elsewhere") as caught:
        lease.claim(tmp_path)
    assert caught.value.code == BUSY
    path = next(tmp_path.glob(".attempt-*"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": time.time() - 100}))
    store.write_json(tmp_path / "status.json", {"state": "running", "heartbeat": time.time() - 1})
    assert lease.owner(tmp_path)["node"] == "elsewhere"
    store.write_json(tmp_path / "status.json", {"state": "running", "heartbeat": time.time() - 50})
    assert lease.owner(tmp_path) is None
    with lease.own(tmp_path) as mine:
        assert mine.number == 2


@pytest.mark.parametrize("jump", [-10_000, 10_000])
def test_a_clock_that_jumps_does_not_make_a_speaking_owner_dead(tmp_path, monkeypatch, jump):
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 1.0)
    process = hold(tmp_path, SLURMD_NODENAME="elsewhere")
    path = next(tmp_path.glob(".attempt-*"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": time.time() + jump}))
    code = (
        "import pathlib, sys, time\nfrom engine import store\n"
        "for i in range(100):\n"
        "    value = {'state': 'running', 'heartbeat': time.time() + float(sys.argv[2]) + i}\n"
        "    store.write_json(pathlib.Path(sys.argv[1], 'status.json'), value, durable=False); time.sleep(0.1)"
    )
    speaker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(jump)])
    try:
        while not (tmp_path / "status.json").exists():
            time.sleep(0.01)
        with pytest.raises(Refusal) as caught:
            lease.claim(tmp_path)
        assert caught.value.code == BUSY
    finally:
        kill(speaker)
        kill(process)


def test_a_requeued_job_takes_over_from_what_is_left_of_itself(tmp_path, monkeypatch):
    process = hold(tmp_path, SLURMD_NODENAME="elsewhere", SLURM_JOB_ID="7")
    try:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with pytest.raises(Refusal, match="of job 7 on elsewhere"):
            lease.claim(tmp_path)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with lease.own(tmp_path) as mine:
            mine.check()
            assert process.poll() is None and mine.number == 2
    finally:
        kill(process)


def test_an_attempt_that_was_overtaken_writes_nothing_more(tiny, how, tmp_path):
    """The old attempt is taken for dead, the new one trains to the end; then the old one wakes up and must leave."""
    folder, before = tmp_path / "run", []

    def overtake() -> int:
        if not before:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SLURMD_NODENAME", "another")
                patch.setattr(lease, "STALE_SECONDS", 0.0)
                patch.setattr(lease, "_WATCH_SECONDS", 0.0)
                train(tiny, folder, how)
            before.extend((path, path.read_bytes()) for path in folder.iterdir() if path.name != "log.txt")
            assert store.read_status(folder)["state"] == store.DONE
        return 0

    with pytest.raises(Refusal) as caught:
        train(tiny, folder, how, overtake)
    assert caught.value.code == SUPERSEDED
    for path, content in before:
        if not path.name.startswith(".attempt"):
            assert path.read_bytes() == content, path.name
    assert store.read_status(folder)["state"] == store.DONE


def test_silent_deaths_without_progress_are_counted_per_launch(tmp_path):
    assert lease.deaths(tmp_path, "L") == 0
    for count in (1, 2, 3):
        kill(hold(tmp_path))
        assert lease.deaths(tmp_path, "L") == count
    assert lease.deaths(tmp_path, "another launch") == 0
    store.write_json(tmp_path / "status.json", {"state": "running", "step": 5})
    assert lease.deaths(tmp_path, "L") == 0, "a step was gained"
    kill(hold(tmp_path))
    assert lease.deaths(tmp_path, "L") == 1
    with lease.own(tmp_path, "L"):
        assert lease.deaths(tmp_path, "L") == 1, "one that lives is no death"
    assert lease.deaths(tmp_path, "L") == 0, "the last one ended by itself"


def test_files_of_old_attempts_do_not_pile_up(tmp_path):
    for _ in range(lease.KEEP + 10):
        with lease.own(tmp_path):
            pass
    assert len(list(tmp_path.glob(".attempt-*"))) == lease.KEEP
