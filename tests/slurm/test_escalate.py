"""Memory by what was seen: whose death counts, how much more is asked for, and where it ends."""

import pytest

from engine.errors import Refusal
from engine.folder import store
from slurm import escalate
from slurm.cluster.clusters import Resources
from slurm.define.load import load
from slurm.queue import worker
from slurm.queue.choose import choose, is_of_memory

FILE = (
    '"""Which?"""\nfrom engine.run import Run\ndef runs():\n    for seed in range(4): yield Run(epochs=2, seed=seed)\n'
)
RULE = escalate.Rule(1.5, 16.0)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Four runs: done with a peak of 2 GB, killed in job 7 of 8 GB, out of memory in job 8 of 16 GB, diverged."""
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    (tmp_path / "which.py").write_text(FILE)
    made = load(str(tmp_path / "which.py"))
    made.make_folder()
    said = [
        {"state": "done", "memory_gb": 2.0},
        {"state": "failed", "error_class": "signal", "error": "its process died 4 times"},
        {"state": "failed", "error_class": "unknown", "error": "DefaultCPUAllocator: not enough memory: you tried"},
        {"state": "failed", "error_class": "diverged", "error": "loss became nan"},
    ]
    for run, folder, status, job in zip(made.runs, made.folders, said, ("", "7_0", "8_3", "7_1"), strict=True):
        store.make_folder(run, folder)
        store.write_json(folder / "status.json", status)
        store.write_json(folder / "env.json", {"device": "cpu"})
        store.write_json(folder / ".attempt-000001.json", {"attempt": 1, "job": job, "ended": True})
    jobs = [{"id": "7", "shape": {"mem_gb": 8.0}}, {"id": "8", "shape": {"mem_gb": 16.0}}]
    (made.jobs_folder / "launch").mkdir()
    store.write_json(made.jobs_folder / "launch" / "launch.json", {"jobs": jobs})
    return made


def test_more_after_a_death_and_a_measured_peak_at_first(sweep):
    statuses = [worker.look(folder) for folder in sweep.folders]
    assert [is_of_memory(status) for status in statuses] == [False, True, True, False]
    assert sorted(choose(sweep, ["memory"]).places) == [1, 2]
    found = escalate.needs(sweep, [Resources()] * 4, statuses, RULE)
    assert [need.mem_gb for need in found] == [2.6, 12.0, 16.0, 2.6]
    found = escalate.needs(sweep, [Resources(mem_gb=4, pack=2)] * 4, statuses, RULE)
    assert [need.mem_gb for need in found] == [4, 12.0, 16.0, 4], "what was asked for stays where nothing died"
    assert (
        escalate.may_grow(sweep, statuses, RULE) == 1 and escalate.may_grow(sweep, statuses, escalate.Rule(2, 8)) == 0
    )


def test_the_memory_of_a_gpu_is_another_matter(sweep):
    store.write_json(sweep.folders[0] / "env.json", {"device": "cuda:0"})
    said = {"state": "failed", "error_class": "unknown", "error": "CUDA error: out of memory, not enough memory"}
    store.write_json(sweep.folders[2] / "status.json", said)
    statuses = [worker.look(folder) for folder in sweep.folders]
    found = escalate.needs(sweep, [Resources()] * 4, statuses, RULE)
    assert [need.mem_gb for need in found] == [None, 12.0, None, None]


@pytest.mark.parametrize("text", ["", "mem_gb", "mem_gb=2", "mem_gb=1:64", "cpus=2:64", "mem_gb=2:0", "mem_gb=nan:8"])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(Refusal, match="--escalate takes mem_gb=FACTOR:LIMIT"):
        escalate.parse(text)
    assert escalate.parse("mem_gb=1.5:16") == RULE
