"""Two attempts of one run never write at once: claims, takeovers and the fence, with real processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import engine.train
from engine.errors import BUSY, STOPPED, SUPERSEDED, Refusal
from engine.folder import lease, store
from engine.train import train

HOLD = (
    "import pathlib, sys, time\nfrom engine.folder import lease\n"
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


def speak(folder, shift: float, every: float):
    """A process that writes a heartbeat each `every` seconds, by a clock that is wrong by `shift` seconds."""
    code = (
        "import pathlib, sys, time\nfrom engine.folder import store\n"
        "while True:\n"
        "    value = {'state': 'running', 'heartbeat': time.time() + float(sys.argv[2])}\n"
        "    store.write_json(pathlib.Path(sys.argv[1], 'status.json'), value, durable=False)\n"
        "    time.sleep(float(sys.argv[3]))"
    )
    speaker = subprocess.Popen([sys.executable, "-c", code, str(folder), str(shift), str(every)])
    while not (folder / "status.json").exists():
        time.sleep(0.01)
    return speaker


def test_a_silent_owner_on_another_node_is_watched_before_it_is_dead(tmp_path, monkeypatch, capsys):
    """However old, or new, its last word looks: nobody here knows that node's clock."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_PATIENT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.1)
    process = hold(tmp_path, SLURMD_NODENAME="elsewhere")
    kill(process)  # nobody here can know that
    store.write_json(tmp_path / "status.json", {"state": "running", "heartbeat": time.time() - 10_000})
    assert lease.owner(tmp_path)["unsure"]
    with pytest.raises(Refusal, match=f"process {process.pid} on elsewhere") as caught:
        lease.claim(tmp_path)
    assert caught.value.code == BUSY
    with pytest.raises(Refusal, match="stopped while it was watched") as caught:
        lease.claim(tmp_path, stop=lambda: STOPPED)
    assert caught.value.code == STOPPED
    began = time.monotonic()
    with lease.own(tmp_path, stop=lambda: 0) as mine:
        assert mine.number == 2 and 0.5 < time.monotonic() - began < 10
    assert f"process {process.pid} on elsewhere; watching for 1 s" in capsys.readouterr().err


@pytest.mark.parametrize("shift", [-10_000, -120, 0, 120, 10_000])
def test_a_wrong_clock_does_not_make_a_speaking_owner_dead(tmp_path, monkeypatch, shift):
    """Its heartbeats come every three seconds; whoever looks is patient for four."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 4.0)
    process = hold(tmp_path, SLURMD_NODENAME="elsewhere")
    speaker = speak(tmp_path, shift, 3.0)
    try:
        for _ in range(2):
            with pytest.raises(Refusal) as caught:
                lease.claim(tmp_path, stop=lambda: 0)
            assert caught.value.code == BUSY
        assert lease.owner(tmp_path)["unsure"] is False
        kill(speaker)
        lease._heard[tmp_path].looked -= 1000  # this process was stopped itself: that is no silence of the other
        assert lease.owner(tmp_path) is not None
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


@pytest.mark.parametrize("moment", ["before it has opened the data", "after its first step"])
@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_that_was_overtaken_writes_nothing_more(tiny, how, tmp_path, monkeypatch, moment, attempt):
    """The old attempt is taken for dead, the new one trains to the end; then the old one wakes up and must leave."""
    folder, before = tmp_path / "run", []
    if attempt == 2:
        with pytest.raises(Refusal, match="stopped at step 1 "):
            train(tiny, folder, how, lambda: STOPPED)

    def overtake() -> int:
        if not before:
            before.append(folder / "nothing")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SLURMD_NODENAME", "another")
                patch.setattr(lease, "STALE_SECONDS", 0.0)
                train(tiny, folder, how)
            before[:] = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()]
            assert store.read_status(folder)["state"] == store.DONE
        return 0

    if moment == "after its first step":
        stop = overtake
    else:
        stop, make_loaders = (lambda: 0), engine.train.make_loaders
        monkeypatch.setattr(engine.train, "make_loaders", lambda *given: (overtake(), make_loaders(*given))[1])
    with pytest.raises(Refusal) as caught:
        train(tiny, folder, how, stop)
    assert caught.value.code == SUPERSEDED
    for path, *written in before:
        if path.name != "log.txt" and not path.name.startswith(".attempt"):
            assert [path.stat().st_mtime_ns, path.read_bytes()] == written, path.name
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
