"""Measure what sweeps add to training: commands on 10,000 runs, and the overhead of 300 tiny ones.

--runs N   generates N run folders and measures plan, status and collect on them: seconds from a warm page cache, memory
--tiny N   trains N tiny runs (digits, 2 epochs) through the local queue, and --others of them with one process per run
           and with hydra's submitit launcher (in a virtual environment made for it): overhead per run, as ratios

Overhead is what a run costs beyond its own training: slots * wall time / runs, less what a run takes in a process that
has trained others before. That is the median of status.json's `seconds` in the queue: model, data, steps, evaluation
and files; what a process pays once (imports, compiled kernels) is overhead, whoever pays it.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main
from engine.errors import Refusal
from engine.folder import store
from engine.run import Run

LIMITS = {"plan": 10.0, "status": 5.0, "collect": 5.0}  # seconds
MEMORY_MB = 500.0
OVERHEAD_S = 0.3
REPEATS = 3
PYTHON = sys.executable
HYDRA = ("hydra-core==1.3.8", "hydra-submitit-launcher==1.2.0")

# Ten models, a grid of learning rates, many seeds; one rung is a variant with another width.
MANY = '''"""Generated: do plan, status and collect keep up with {count} runs?"""

from itertools import islice, product

from engine.run import Run

MODELS = [(family + "_nano", {{}}) for family in "mlp bmlp patchmlp resmlp mixer gmlp deit convmixer vip".split()]
MODELS.append(("mixer_nano", {{"dim": 24}}))
RATES = [round(1e-4 * 10 ** (i / 5), 6) for i in range(10)]


def runs():
    for seed, lr, (model, kwargs) in islice(product(range(10**6), RATES, MODELS), {count}):
        yield Run(model=model, model_kwargs=kwargs, lr=lr, seed=seed)
'''
TINY = {"model": "mixer_nano", "epochs": 2, "batch_size": 64}
FEW = '''"""Generated: what does a sweep of tiny runs cost beyond its training?"""

from engine.run import Run


def runs():
    for seed in range({first}, {first} + {count}):
        yield Run(**{fields}, seed=seed)
'''
APP = """import hydra
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path=None)
def main(given: DictConfig) -> None:
    from pathlib import Path

    from engine.folder import store
    from engine.run import make_how, make_run
    from engine.train import train

    run = make_run({{**{fields}, "seed": given.seed}})
    train(run, store.folder_of(run), make_how({{"data_dir": Path({data!r}), "threads": 1}}))


if __name__ == "__main__":
    main()
"""


def main() -> int:
    parser = Parser(prog="scripts/bench/sweeps.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, metavar="N", help="run folders to generate, such as 10000")
    parser.add_argument("--tiny", type=int, metavar="N", help="tiny runs to train, such as 300")
    parser.add_argument("--others", type=int, metavar="N", help="of these, with each of the others (default: a tenth)")
    parser.add_argument("--slots", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--scratch", type=Path, help="folder to work in, which is kept; by default a temporary one")
    parser.add_argument("--results-file", type=Path, default=store.ROOT / "results/bench/sweep.json")
    given = parser.parse()
    if not (given.runs or given.tiny):
        raise Refusal("give --runs 10000, --tiny 300 or both")
    with _scratch(given.scratch) as scratch:
        found, misses = {}, []
        if given.runs:
            found["many"] = many(scratch / "many", given.runs)
            misses += [f"{row['command']} took {row['seconds']:.1f} s and {row['memory_mb']:.0f} MB" for row in
                       found["many"]["commands"] if not row["ok"]]  # fmt: skip
        if given.tiny:
            others = given.others or max(2 * given.slots, given.tiny // 10)
            found["tiny"] = tiny(scratch / "tiny", given.tiny, others, given.slots)
            if found["tiny"]["queue"]["overhead_s"] > OVERHEAD_S:
                misses.append(f"overhead of {found['tiny']['queue']['overhead_s']:.2f} s per run")
    found["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    given.results_file.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(given.results_file, store.read_json(given.results_file) | found)
    print(f"written: {given.results_file}")
    for miss in misses:
        print(f"missed: {miss}")
    return int(bool(misses))


def many(scratch: Path, count: int) -> dict[str, Any]:
    """Generate the runs, once, and measure the commands."""
    from slurm.define.load import load

    scratch.mkdir(parents=True, exist_ok=True)
    sweep_file = scratch / "many.py"
    sweep_file.write_text(MANY.format(count=count))
    os.environ["SOFTMLP_RESULTS"] = str(scratch / "results")
    began = time.perf_counter()
    for index, run in enumerate(load(str(sweep_file)).runs):
        _generate(run, index)
    print(f"{count} run folders in {time.perf_counter() - began:.0f} s", flush=True)
    rows = []
    for command, limit in LIMITS.items():
        words = [PYTHON, str(store.ROOT / "scripts/sweep.py"), command, str(sweep_file)]
        measured = [_measure(words, scratch / f"{command}.txt") for _ in range(REPEATS + 1)][1:]
        seconds, memory = map(statistics.median, zip(*measured, strict=True))
        ok = seconds < limit and memory < MEMORY_MB
        rows.append({"command": command, "seconds": round(seconds, 2), "memory_mb": round(memory, 1), "limit_s": limit})
        rows[-1]["ok"] = ok
        print(f"{command}: {seconds:.2f} s (limit {limit:g} s), {memory:.0f} MB (limit {MEMORY_MB:g} MB)", flush=True)
    return {"runs": count, "repeats": REPEATS, "commands": rows}


def _generate(run: Run, index: int) -> None:
    """The files that a run leaves behind, as the engine writes them; of every hundred, one of each other state."""
    folder = store.folder_of(run)
    if (folder / "status.json").exists() or index % 100 == 3:
        return  # there already; or planned
    store.make_folder(run, folder)
    state = {0: "failed", 1: "stopped", 2: "running"}.get(index % 100, "done")
    epochs = run.epochs if state == "done" else run.epochs // 2
    acc1 = 60.0 + index % 37
    status = {
        **{"state": state, "attempt": 1, "pid": 2**22 + index, "host": "node1", "started": 1.7e9, "heartbeat": 1.7e9},
        **{"epoch": epochs, "epochs": run.epochs, "step": 11 * epochs, "steps": 11 * run.epochs, "acc1": acc1},
        **{"best_acc1": acc1 + 0.2, "best_epoch": epochs - 1, "images_per_s": 4321.5, "mfu": 0.02, "memory_gb": 0.612},
        **{"data_wait": 0.031, "eta_s": 0.0, "seconds": 12.345},
    }
    if state == "failed":
        line = f"loss became nan at epoch 3 step 27 of {run.name} (lr {run.lr:g}); try --clip-grad 1 or a lower --lr"
        status |= {"error_class": "diverged", "error": line, "exit_code": 5}
    env = {"python": "3.11.7", "torch": "2.12.1", "processor": "x86", "host": "node1", "cores": 2, "commit": "0" * 40}
    lease = {"attempt": 1, "node": "node1", "host": "node1", "pid": 2**22 + index, "job": "", "restart": 0, "step": 0}
    header = "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n"
    rows = "".join(
        f"{e},{2 - e / 20:.6f},{2 - e / 25:.6f},{acc1 - 9 + e / 5:.4f},98.2,{run.lr:g}\n" for e in range(epochs)
    )
    for name, text in (
        ("status.json", json.dumps(status, indent=1)),
        ("summary.csv", header + rows),
        ("profile.json", json.dumps({"params": 27_626, "macs": 444_736, "flops": 889_472})),
        ("env.json", json.dumps({**env, "threads": 1, "device": "cpu", "world_size": 1, "data_sha256": "0" * 64})),
        (".attempt-000001.json", json.dumps({**lease, "launch": "x", "time": 1.7e9, "ended": state != "running"})),
    ):
        (folder / name).write_text(text)


def _measure(words: Sequence[str], output: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB) of a command. Raises Refusal where it fails."""
    with output.open("w") as file:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        _, code, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(code)
    if code:
        last = (output.read_text().strip().splitlines() or ["it said nothing"])[-1]
        raise Refusal(f"{' '.join(words)} failed: {last}", 1)
    return seconds, usage.ru_maxrss * 1024 / 1e6


def tiny(scratch: Path, count: int, others: int, slots: int) -> dict[str, Any]:
    """The three ways, one after the other in one session; the others' figures also as ratios to the queue's."""
    from engine.data.ensure import ensure

    data = scratch / "data"
    data.mkdir(parents=True, exist_ok=True)
    ensure("digits", 8, data)
    found: dict[str, Any] = {"slots": slots}
    own = 0.0
    for name, way, number in (("queue", _queue, count), ("processes", _processes, others), ("hydra", _hydra, others)):
        folder = scratch / name
        if (folder / "results").exists():
            raise Refusal(
                f"{folder / 'results'} holds runs of an earlier measurement; remove it, or leave --scratch out"
            )
        folder.mkdir(exist_ok=True)
        os.environ["SOFTMLP_RESULTS"] = str(folder / "results")
        runs = [Run(**TINY, seed=seed) for seed in range(number)]
        wall = way(folder, data, runs, slots)
        statuses = [store.read_json(store.folder_of(run) / "status.json") for run in runs]
        if any(status.get("state") != store.DONE for status in statuses):
            raise Refusal(f"{name}: not all runs ended well; keep the folder with --scratch and look", 1)
        if name == "queue":
            own = statistics.median(status["seconds"] for status in statuses)
            steps = statistics.median(TINY["epochs"] * 1297 / status["images_per_s"] for status in statuses)
            found["own"] = {"seconds": round(own, 4), "of_which_steps": round(steps, 4)}
        row = {"runs": number, "wall_s": round(wall, 2), "wall_per_run_s": round(wall / number, 4)}
        found[name] = row | {"overhead_s": round(slots * wall / number - own, 4)}
        if name != "queue":
            for key in ("overhead_s", "wall_per_run_s"):
                found[name][f"{key}_over_queue"] = round(found[name][key] / found["queue"][key], 2)
        print(f"{name}: {found[name]}", flush=True)
    return found


def _queue(folder: Path, data: Path, runs: Sequence[Run], slots: int) -> float:
    """scripts/sweep.py launch: as many workers as slots, each takes run after run."""
    sweep_file = folder / "tiny.py"
    sweep_file.write_text(FEW.format(first=0, count=len(runs), fields=TINY))
    words = ["launch", str(sweep_file), "--cluster", "local", "--slots", str(slots), "--threads", "1"]
    # Timed to the last run and not to the report, which the others do not write.
    began = time.time()
    _measure([PYTHON, str(store.ROOT / "scripts/sweep.py"), *words, "--data-dir", str(data)], folder / "log.txt")
    return max(store.read_json(store.folder_of(run) / "status.json")["heartbeat"] for run in runs) - began


def _processes(folder: Path, data: Path, runs: Sequence[Run], slots: int) -> float:
    """scripts/train.py for every run, as many at a time as slots."""
    from engine.cli.repro import command

    def train(run: Run) -> None:
        words = command(run, {"threads": 1, "data_dir": data}).split()[1:]
        _measure([PYTHON, str(store.ROOT / words[0]), *words[1:]], folder / f"{run.seed}.txt")

    began = time.perf_counter()
    with ThreadPoolExecutor(slots) as pool:
        list(pool.map(train, runs))
    return time.perf_counter() - began


def _hydra(folder: Path, data: Path, runs: Sequence[Run], slots: int) -> float:
    """Hydra's submitit launcher on this machine; it has no queue, so the sweeper is told to go by batches of slots."""
    python = _hydra_python(folder / "venv")
    app = folder / "app.py"
    app.write_text(APP.format(fields=TINY, data=str(data)))
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=600", f"hydra.sweep.dir={folder}/multirun"]
    seeds = ",".join(str(run.seed) for run in runs)
    began = time.perf_counter()
    _measure(
        [str(python), str(app), "-m", *launcher, f"hydra.sweeper.max_batch_size={slots}", f"+seed={seeds}"],
        folder / "log.txt",
    )
    return time.perf_counter() - began


def _hydra_python(venv: Path) -> Path:
    """A virtual environment with hydra, in which everything of this one can be imported, too."""
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([PYTHON, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *HYDRA], check=True)
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        ours = [path for path in sys.path if path.endswith("site-packages")]
        lines = [f"import site; site.addsitedir({path!r})" for path in ours] + [str(store.ROOT)]
        (Path(own) / "softmlp.pth").write_text("\n".join(lines) + "\n")
    return python


@contextlib.contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="softmlp-bench-") as name:
            yield Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()


if __name__ == "__main__":
    run_main(main)
