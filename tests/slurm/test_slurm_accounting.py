"""With accounting: why a process died without a word; and a node that takes its job with it."""

from tests.trial import assert_same

LAB = {"accounting": True}


def test_status_says_why_and_resume_goes_on(make_trial, lab, whole):
    """The job may not be requeued; resume must not wait for its heartbeat to grow stale."""
    trial = make_trial(0)
    trial.launch()
    trial.freeze(0)
    job, node = trial.job(0), trial.owner(0)["node"]
    lab.run("scontrol", "update", f"jobid={job}", "requeue=0")
    lab.node_kill(node)
    lab.wait_for(lambda: f"NODE_FAIL on {node}" in trial.script("status"), 30, trial.story)
    trial.launch()
    trial.finish(120)
    assert trial.owner(0)["node"] != node and "from step" in trial.log(0)
    assert_same(trial, whole)
