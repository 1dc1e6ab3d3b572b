"""Launching without a scheduler: resources, shapes, resuming, cancelling, logs, refusals.

What needs a SLURM is in tests/test_slurm_*.py.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import CLUSTER, USAGE, Refusal
from engine.folder import lease, store
from slurm import launch
from slurm.cluster import clusters, submit
from slurm.cluster.clusters import Resources
from slurm.cluster.scheduler import Element
from slurm.define.load import load
from slurm.define.sweep import Sweep
from slurm.queue import states, task, worker
from slurm.queue.cancel import cancel, matching
from slurm.queue.choose import choose
from slurm.queue.logs import show

ROOT = Path(__file__).parents[2]
TWO = '"""Which?"""\nfrom engine.run import Run\ndef runs():\n for seed in (0, 1): yield Run(seed=seed, **TINY)\n'
TINY = {"model": "mixer_nano", "model_kwargs": {"depth": 1}, "epochs": 1, "train_samples": 256}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def two(results, tmp_path) -> Sweep:
    (tmp_path / "two.py").write_text(TWO.replace("**TINY", f"**{TINY!r}"))
    return load(str(tmp_path / "two.py"))


def script(*words, path: str | None = None, **env: str) -> subprocess.CompletedProcess:
    own = {**os.environ, **env, **({"PATH": path} if path is not None else {})}
    command = [sys.executable, ROOT / "scripts/sweep.py", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=own, stdin=subprocess.DEVNULL)


def states_of(sweep: Sweep) -> list[str]:
    return [status["state"] for status in states.standing(sweep)]


# --- resources --------------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_run_over_the_environment_over_the_profile(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(
        "mine: {partition: a, cpus: 2, mem_gb: 8, timeout_min: 60, setup: [module load x]}\n"
    )
    monkeypatch.setenv("SOFTMLP_CLUSTERS", str(tmp_path / "c.yaml"))
    env = {"SOFTMLP_PARTITION": "b", "SOFTMLP_CPUS": "3", "SOFTMLP_MEM_GB": "16"}
    made = clusters.resources("mine", {"mem_gb": 32, "cpus": 4}, {"mem_gb": "64"}, env)
    assert (made.timeout_min, made.partition, made.cpus, made.mem_gb) == (60, "b", 4, 64)
    assert made.setup == ("module load x",)
    assert clusters.resources("slurm", {}, {}, {}) == Resources()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu: {partion: x}", "unknown resource 'partion'; did you mean 'partition'?"),
        ("gpu: {cpus: 0}", "cpus 0: input should be greater than or equal to 1"),
        ("gpu: {partition: 'a b'}", "partition 'a b'"),
        ("gpu: 3", "expected a name"),
        ("- a", "expected 'key: value' lines"),
        ("gpu: {", "not YAML"),
        ("local: {cpus: 1}", "cannot be called local"),
    ],
)
def test_a_faulty_table_of_clusters_is_refused_in_one_line(tmp_path, monkeypatch, text, words):
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.setenv("SOFTMLP_CLUSTERS", str(tmp_path / "c.yaml"))
    with pytest.raises(Refusal) as refusal:
        clusters.profiles()
    assert words in str(refusal.value) and str(tmp_path / "c.yaml") in str(refusal.value)
    assert "\n" not in str(refusal.value) and refusal.value.code == USAGE


def test_options_of_sbatch_add_up_and_each_is_taken_from_where_it_wins(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(
        "mine: {sbatch: {gres: 'gpu:a100:2', reservation: course, exclusive: true}, cpus: 2}\nplain: {gpus: 1}\n"
    )
    monkeypatch.setenv("SOFTMLP_CLUSTERS", str(tmp_path / "c.yaml"))
    env = {"SOFTMLP_SBATCH": "--mail-type=END,FAIL reservation=exam"}
    made = clusters.resources("mine", {"mem_gb": 8}, {"sbatch": ["mail-type=ALL", "exclude=n1,n2"]}, env)
    assert made.sbatch == ("exclude=n1,n2", "exclusive", "gres=gpu:a100:2", "mail-type=ALL", "reservation=exam")
    assert (made.gpus, made.gpus_per_node, made.asked["exclusive"]) == (0, 2, True)
    assert "gres=gpu:a100:2" in made.told()
    typed = clusters.resources("plain", {}, {"sbatch": "gres=gpu:h100:4"}, {})
    assert (typed.gpus, typed.gpus_per_node) == (0, 4), "a kind takes the place of the profile's number"
    plain = clusters.resources("mine", {"gpus": 1}, {}, {})
    assert (plain.gpus, plain.gpus_per_node) == (1, 1) and "gres" not in plain.asked
    for gres, count in {"gpu": 1, "gpu:3": 3, "gpu:a100": 1, "gpu:a:2,gpu:b:1": 3, "licence:2": 0}.items():
        assert Resources(sbatch=f"gres={gres}").gpus_per_node == count


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("mem=4G", "mem is --mem-gb here"),
        ("gpus=a100:1", "gpus is --gpus here, or gres=gpu:TYPE:NUMBER"),
        ("--comment=x", "comment is set by the launch"),
        ("Mail=x", "'Mail=x' is no option of sbatch"),
        ("mail-type=END\n#SBATCH --wrap", "is no option of sbatch"),
        ("gres=", "is no option of sbatch"),
    ],
)
def test_an_option_that_is_none_or_is_ours_is_refused(word, line):
    with pytest.raises(Refusal, match=re.escape(line)) as refusal:
        clusters.make({"sbatch": [word]})
    assert refusal.value.code == USAGE


def test_the_table_of_clusters_that_we_ship_is_valid():
    assert set(clusters.profiles()) >= {"gpu", "cpu"}


def test_processes_that_train_one_run_together_are_not_packed():
    assert clusters.resources("gpu_shared", {"nodes": 2}, {}, {}).pack == 1
    with pytest.raises(Refusal, match="2 processes train each run together"):
        clusters.resources("slurm", {"nodes": 2}, {"pack": 2}, {})


def test_the_warning_comes_within_the_time_limit():
    assert Resources(timeout_min=1).warning_s == 30
    assert Resources(timeout_min=240).warning_s == 90


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def resources(run): return {'partition': 'x'}", "unknown resource 'partition'; known: nodes, tasks"),
        ("def resources(run): return {'gpu': 1}", "did you mean 'gpus'?"),
        ("def resources(run): return {'gpus': -1}", "gpus -1"),
        ("def resources(run): return None", "gave None, which is no dict"),
        ("def resources(run): return {'gpus': 1 / 0}", "ZeroDivisionError"),
    ],
)
def test_faulty_resources_of_a_sweep_are_refused(results, tmp_path, body, words):
    (tmp_path / "two.py").write_text(TWO.replace("**TINY", "") + body)
    with pytest.raises(Refusal) as refusal:
        load(str(tmp_path / "two.py"))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


# --- arrays -----------------------------------------------------------------------------------------------------------


def write_spec(jobs: Path, comment: str, folders: list[str]) -> None:
    name, _, key = comment.partition("/")
    (jobs / name).mkdir(parents=True, exist_ok=True)
    (jobs / name / f"shape-{key}.json").write_text(json.dumps({"folders": folders, "pack": 1}))


def test_only_what_no_element_comes_for_is_submitted(tmp_path):
    shape = submit.Shape(Resources(), ("a", "b", "c", "d"))
    write_spec(tmp_path, "first/00000000", ["a", "b"])
    waits, runs = (Element(f"1_{n}", state, "", "first/00000000") for n, state in enumerate(("PENDING", "RUNNING")))
    stranger = Element("2", "RUNNING", "", "")
    assert submit.missing(shape, [], tmp_path, ()) == 4
    assert submit.missing(shape, [waits, runs, stranger], tmp_path, ()) == 2
    write_spec(tmp_path, "second/00000000", ["a", "b", "c", "d"])
    four = [Element(f"3_{n}", "RUNNING", "", "second/00000000") for n in range(4)]
    assert submit.missing(shape, four, tmp_path, ()) == 0
    assert submit.missing(shape, four[:1], tmp_path, ()) == 3, "one element would take them one after another"
    assert submit.missing(shape, four, tmp_path, ("a",)) == 1, "the four may have struck off what had ended"
    packed = submit.Shape(Resources(pack=3), shape.folders)
    assert submit.missing(packed, [], tmp_path, ()) == 2


@pytest.mark.parametrize(
    "comment", ["", "x", "../../etc/00000000", "first/0000000g", "first/00000000/x", "a b/00000000"]
)
def test_a_strange_comment_of_a_job_is_not_followed(tmp_path, comment):
    write_spec(tmp_path, "first/00000000", ["a"])
    assert submit.read_spec(tmp_path, comment) == {}


def test_an_element_finds_a_task_again_that_its_launcher_owed_it(tmp_path):
    from submitit.core.utils import DelayedSubmission

    write_spec(tmp_path, "first/00000000", ["a"])
    submit.mend(tmp_path, [Element("7_1", "PENDING", "", "first/00000000"), Element("8", "PENDING", "", "")])
    assert not list(tmp_path.glob("**/*.partial")) and len(list(tmp_path.glob("**/*.pkl"))) == 1
    found = DelayedSubmission.load(tmp_path / "first" / "7_1_submitted.pkl")
    assert isinstance(found.function, task.Task)
    assert Path(found.function.spec) == tmp_path / "first" / "shape-00000000.json"
    assert found._checkpoint_function().function.spec == found.function.spec


def test_what_an_element_imports_before_it_listens_is_light():
    code = (
        "import sys, slurm.queue.task\n"
        "heavy = {'torch', 'timm', 'ffcv', 'numpy', 'pydantic', 'yaml', 'submitit'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- resuming and cancelling ------------------------------------------------------------------------------------------


def test_cancelled_runs_are_left_out_until_they_are_asked_for(two, digits):
    how = {"data_dir": str(digits), "threads": 1}
    assert cancel(two, matching(two.runs, ["arch=mixer_nano", "seed=1"])) == (1, 0)
    assert states_of(two) == ["planned", "cancelled"]
    launch.launch(two, how, cluster="debug")
    assert states_of(two) == ["done", "cancelled"]
    assert cancel(two, [0, 1]) == (0, 0), "what has ended stays as it is"
    launch.launch(two, how, cluster="debug", kinds={"failed", "timeout"})
    assert states_of(two) == ["done", "cancelled"]
    launch.launch(two, how, cluster="debug", kinds={"cancelled"})
    assert states_of(two) == ["done", "done"]


def test_a_run_reserved_for_a_launch_is_left_to_it_until_that_is_gone(two, digits):
    both = choose(two, {"unfinished"})
    assert (both.runs, both.renewed) == ([*two.runs], frozenset())
    store.make_folder(two.runs[0], two.folders[0])
    store.write_json(two.folders[0] / "status.json", {"state": "planned", "reserved": "big"})
    assert worker._next(list(two.folders), "small")[0] == two.folders[1]
    assert worker._next(list(two.folders), "big")[0] == two.folders[0]
    both.release(there={"big"})
    assert worker._next(list(two.folders), "small")[0] == two.folders[1]
    both.release(there={"other"}, owner="bigger")
    assert worker._next(list(two.folders), "small") == (None, False)
    both.release()
    assert worker._next(list(two.folders), "small")[0] == two.folders[0]
    assert states_of(two) == ["planned", "planned"]
    store.write_json(two.folders[0] / "status.json", {"state": "done"})
    store.write_json(two.folders[1] / "status.json", {"state": "failed"})
    both.release()
    assert states_of(two) == ["done", "failed"], "what ended since it was chosen stays"
    replace(both, renewed=frozenset(map(str, two.folders))).release()
    assert states_of(two) == ["done", "stopped"]


def test_a_run_that_is_being_trained_saves_and_leaves_when_it_is_cancelled(two, digits, monkeypatch):
    monkeypatch.setattr(worker, "CANCEL_SECONDS", 0.0)
    for run, folder in zip(two.runs, two.folders, strict=True):
        store.make_folder(run, folder)
    first, second = two.folders
    asked = []

    def stop() -> int:
        if first.joinpath("status.json").exists() and not asked and lease.owner(first):
            asked.append(cancel(two, [0]))
        return 0

    worker.drain(two.folders, {"data_dir": str(digits), "threads": 1}, "launch", stop)
    assert asked == [(0, 1)]
    assert states_of(two) == ["cancelled", "done"], "the next run is not meant"
    assert list(first.glob("checkpoint-*")) and not (first / worker.CANCEL).exists()
    assert store.read_json(first / "status.json")["error_class"] == "cancelled"
    assert not list(second.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sed=1"], "unknown field 'sed'; did you mean 'seed'?"),
        (["seed"], "takes key=value"),
        (["seed=7"], "no run has seed=7"),
    ],
)
def test_a_wrong_choice_of_runs_is_refused(two, words, line):
    with pytest.raises(Refusal, match=line.replace("?", r"\?")):
        matching(two.runs, words)
    assert matching(two.runs, ["seed=1"]) == [1] and matching(two.runs, []) == [0, 1]


def test_states_are_told_from_folders_alone(two):
    stalled, preempted = two.folders
    for run, folder in zip(two.runs, two.folders, strict=True):
        store.make_folder(run, folder)
    store.write_json(preempted / "status.json", {"state": "stopped", "error_class": "preempted", "step": 7})
    with lease.own(stalled) as held:
        held.record["time"] -= 3600
        (stalled / ".attempt-000001.json").write_text(json.dumps(held.record))
        store.write_json(stalled / "status.json", {"state": "running", "heartbeat": store.now() - 90})
        assert states_of(two) == ["stalled", "preempted"]
        assert "not heard of for 1 min 30 s" in states.standing(two)[0]["note"]
    assert states_of(two) == ["stopped", "preempted"]
    first, second = states.standing(two)
    assert first["note"] == "its process died without a word; resume goes on"
    assert second["note"] == "saved at step 7; resume goes on"
    store.write_json(preempted / "status.json", {"state": "stopped", "error_class": "timeout", "step": 7})
    assert states_of(two) == ["stopped", "timeout"]


def test_a_long_table_says_the_same_as_a_short_one(two, monkeypatch):
    store.make_folder(two.runs[1], two.folders[1])
    store.write_json(two.folders[1] / "status.json", {"state": "done", "acc1": 97.0, "epoch": 1})
    statuses = states.standing(two)
    assert [column.header for column in states.table(two, statuses).columns] == list(states.HEADINGS)
    monkeypatch.setattr(states, "MANY", 0)
    lines = states.table(two, statuses, sort="acc1").splitlines()
    assert lines[0] == "two: 1 planned, 1 done" and lines[1].split() == list(states.HEADINGS)
    assert lines[2].split()[:2] == [two.runs[1].signature, "mixer_nano"] and " 97.00 " in lines[2]
    assert [line.split()[0] for line in states.table(two, statuses, state="planned").splitlines()[2:]] == [
        two.runs[0].signature
    ]


def test_the_log_of_a_run_that_failed_says_why(two, capsys):
    folder = two.folders[0]
    show(two, folder)
    assert "has said nothing yet (planned)" in capsys.readouterr().out
    store.make_folder(two.runs[0], folder)
    (folder / "log.txt").write_text("hello\n")
    store.write_json(folder / "status.json", {"state": "failed", "error_class": "oom", "error": "too much"})
    show(two, folder, follow=True)
    assert capsys.readouterr().out == "hello\nfailed: oom: too much\n"


def test_a_run_is_found_by_the_beginning_of_its_signature(two):
    run, folder = two.runs[1], two.folders[1]
    assert states.find(two, run.signature[:6]) == (run, folder)
    for prefix in ("", "zz", "../"):
        with pytest.raises(Refusal, match="has a signature that begins with"):
            states.find(two, prefix)
    with pytest.raises(Refusal, match=f"2 runs of twins begin with '{run.signature}'; give more"):
        states.find(Sweep("twins", "", (run, run)), run.signature)


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("launch",), "name a sweep, or give --grid"),
        (("launch", "demo", "--grid", "seed=1"), "both a sweep, demo, and --grid"),
        (("launch", "demo", "--lr", "1"), "--lr goes with --grid"),
        (("launch", "demo", "--cluster", "gpuu"), "unknown cluster 'gpuu'; did you mean 'gpu'?"),
        (("launch", "demo", "--cluster", "local", "--partition", "x"), "partition: for SLURM only"),
        (("launch", "demo", "--pack", "0", "--cluster", "local"), "for SLURM only"),
        (("resume", "demo", "--set", "mem"), "--set takes key=value"),
        (("resume", "demo", "--set", "mem=3", "--cluster", "local"), "for SLURM only"),
        (("status", "demo", "--sort", "size"), "invalid choice: 'size'"),
        (("status", "demo", "--watch", "0"), "'0' is not a number of seconds"),
        (("logs", "demo", "zzz"), "no run of demo has a signature that begins with 'zzz'"),
        (("logs", "demo"), "signature"),
        (("cancel", "demo"), "planned; add --yes"),
        (("cancel", "demo", "--where", "arhc=x"), "unknown field 'arhc'; did you mean 'arch'?"),
        (("repro", "demo", ""), "no run of demo"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, line, results, tmp_path):
    ended = script(*words, path=str(tmp_path))
    assert ended.returncode == USAGE and line in ended.stderr, ended
    assert ended.stderr.count("\n") == 1 and not ended.stdout and not results.exists()


def test_without_slurm_a_cluster_is_refused_and_auto_is_this_machine(two, results, digits, tmp_path):
    for name in ("slurm", "gpu"):
        ended = script("launch", "demo", "--cluster", name, path=str(tmp_path))
        assert ended.returncode == CLUSTER and "no SLURM controller answers" in ended.stderr, ended
        assert ended.stderr.count("\n") == 1 and not results.exists()
    words = ("--data-dir", digits, "--threads", "1")
    ended = script("launch", tmp_path / "two.py", *words, path=str(tmp_path))
    assert ended.returncode == 0 and "2 to train, here," in ended.stdout, ended
    assert states_of(two) == ["done", "done"]
    ended = script("resume", tmp_path / "two.py", "--failed", path=str(tmp_path))
    assert ended.returncode == 0 and "report:" in ended.stdout, ended


def test_doctor_says_what_is_there(results, tmp_path):
    ended = script("doctor", path=str(tmp_path))
    assert ended.returncode == 0, ended
    assert "not on this machine; --cluster auto trains here" in ended.stdout and "GB free" in ended.stdout
    assert not results.exists()
