"""Runs of one sweep on a real SLURM, each hit by a fault of its own, end as if nothing had happened."""

import os
import signal
import time
from pathlib import Path

from tests.lab import NODES
from tests.trial import DIVERGING, assert_same, parent


def test_a_fault_for_every_run_of_an_array(make_trial, lab, whole):
    """Nothing but waiting is needed: a run that lost its process is taken up by any element that is there."""
    trial = make_trial(0, 1, 2, 3, 4, 5, DIVERGING)
    trial.launch()
    trial.freeze(*range(6))
    jobs = [trial.job(index) for index in range(6)]
    assert len(set(jobs)) == 6, "one element for each"
    lab.run("scontrol", "requeue", jobs[0])
    lab.run("scancel", "--signal=USR2", jobs[1])
    trial.kill(2)
    os.kill(parent(trial.owner(3)["pid"]), signal.SIGKILL)
    lab.run("scancel", jobs[4])
    for index in range(5):
        trial.until_told(index)  # a controller that is stopped forgets signals that it has not yet passed on
    lab.controller_stop()
    trial.thaw(*range(6))
    time.sleep(1)
    lab.controller_start()
    trial.finish(150)
    assert [trial.attempts(index) > 1 for index in range(6)] == [True] * 5 + [False], trial.story()
    assert all("from step" in trial.log(index) for index in range(5)), trial.story()
    assert trial.states() == ["done"] * 6 + ["failed"]
    assert_same(trial, whole)
    lab.wait_idle(60)


def test_a_node_without_power_and_one_that_is_cut_off(make_trial, lab, whole):
    """Both runs go on on another node. The process on the node that is cut off lives on, and may write no more."""
    trial = make_trial(0, 1)
    trial.launch(cpus=3)
    trial.freeze(0, 1)
    nodes = [trial.owner(index)["node"] for index in (0, 1)]
    assert nodes[0] != nodes[1] and {*nodes} <= {*NODES}
    pid = trial.owner(1)["pid"]
    lab.node_kill(nodes[0])
    lab.node_down(nodes[1])
    lab.node_up(nodes[0])
    lab.wait_for(lambda: trial.attempts(0) > 1 and trial.attempts(1) > 1, 120, trial.story)
    os.kill(pid, signal.SIGCONT)
    trial.finish(120)
    lab.wait_for(lambda: not Path("/proc", str(pid)).exists(), 30, trial.story)
    assert_same(trial, whole)
    assert "was taken over by" in trial.said(), trial.said()
    lab.node_up(nodes[1])
