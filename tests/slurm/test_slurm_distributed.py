"""Runs that several processes train together, over two nodes of a real SLURM."""

import os
import signal
from pathlib import Path

from tests.lab import using
from tests.trial import Trial, assert_same


def test_two_nodes_give_the_weights_of_one_whatever_happens_to_them(make_trial, make_lab):
    """The same global batch in two processes. One of the sweeps loses its second rank, and is told to leave."""
    lab = make_lab()
    one = make_trial(0, name="one", on=lab, rest="def resources(run): return {'tasks': 2}")
    two = make_trial(0, name="two", on=lab, rest="def resources(run): return {'nodes': 2}")
    two.launch()
    two.freeze(0, seconds=120)
    os.kill(rank(two, 1), signal.SIGKILL)
    two.thaw(0)
    two.lab.wait_for(lambda: two.attempts(0) == 2, 90, two.story)
    two.freeze(0, seconds=120)
    lab.run("scancel", "--signal=USR2", two.job(0))
    two.until_told(0)
    two.thaw(0)
    one.launch()
    two.finish(150)
    one.finish(150)
    assert two.attempts(0) == 3 and one.attempts(0) == 1
    assert two.log(0).count("from step") == 2
    assert_same(two, one)


def rank(trial: Trial, number: int) -> int:
    """The process of one rank."""
    found = [
        pid
        for pid, env in using(trial.lab.conf).items()
        if env.get("SLURM_PROCID") == str(number) and b"submitit" in Path("/proc", str(pid), "cmdline").read_bytes()
    ]
    assert len(found) == 1, found
    return found[0]
