"""Measure sweeps of this checkout against those of another one, on this machine, in turn.

ladder   wall time of a launch, from the command to the report: eight rungs of 2 epochs on 10,000 images of CIFAR-10
tiny     overhead per run of --runs tiny runs (digits, 2 epochs): slots * wall time / runs, less the median of what a
         run takes in a process that has trained others before (status.json's `seconds`)

Ratios are the other's time over ours, so 2 is twice as fast; accuracies stand beside each other. The other checkout is
a folder with scripts/sweep.py and, unless --python says otherwise, .venv/bin/python.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.numbers import whole
from engine.cli.tables import append_row, check_target
from engine.errors import Refusal
from engine.folder import store
from engine.folder.environment import processor
from engine.run import DATA_DIR

# Flat, patches, three token mixers, convolution, attention, and a net of timm: rungs of slurm/sweeps/ladder.py at
# 5 MMAC, with its learning rates.
LADDER = '''"""Generated: how long does a ladder take?"""

from engine.run import Run

FRAME = {"patch_size": 8, "depth": 4}
RUNGS = (
    ("bmlp_1m", {"depth": 4, "dim": 350}, 1e-3),
    ("patchmlp_1m", FRAME | {"dim": 352}, 1e-3),
    ("mixer_1m", FRAME | {"dim": 91}, 3e-2),
    ("resmlp_1m", FRAME | {"dim": 95}, 3e-2),
    ("gmlp_1m", FRAME | {"dim": 88}, 1e-2),
    ("convmixer_1m", FRAME | {"kernel_size": 3, "dim": 252}, 1e-2),
    ("deit_1m", FRAME | {"num_heads": 2, "dim": 72, "mlp_ratio": 4.56}, 3e-3),
    ("timm/test_resnet", {}, 1e-2),
)
BASE = {"dataset": "cifar10", "train_samples": 10_000, "epochs": 2, "batch_size": 128, "opt_betas": (0.9, 0.95)}
BASE |= {"clip_grad": 1.0, "warmup_epochs": 0.5, "crop_pad": 4, "hflip": 0.5, "amp": True}


def runs():
    for model, kwargs, lr in RUNGS:
        yield Run(**BASE, model=model, model_kwargs=kwargs, lr=lr)
'''
TINY = '''"""Generated: what does a sweep of tiny runs cost beyond its training?"""

from engine.run import Run


def runs():
    for seed in range(RUNS):
        yield Run(model="mixer_nano", epochs=2, batch_size=64, seed=seed)
'''


def main() -> None:
    parser = Parser(
        prog="scripts/bench/versions.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=("ladder", "tiny"))
    parser.add_argument("--against", type=Path, required=True, metavar="FOLDER", help="another checkout")
    parser.add_argument("--python", type=Path, help="interpreter of the other one (default: FOLDER/.venv/bin/python)")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="with the .beton files of cifar10")
    parser.add_argument("--repeats", type=whole(1, what="number of repeats"), default=3, help="of each, in turn")
    parser.add_argument("--slots", type=whole(1, what="number of slots"), default=2, help="runs at a time")
    parser.add_argument("--runs", type=whole(1, what="number of runs"), default=300, help="of tiny")
    parser.add_argument(
        "--flags", default="", help='more flags of `launch`, for this checkout alone: "--val-interval 2"'
    )
    parser.add_argument("--results-file", type=Path, help="also append the rows to this CSV")
    given = parser.parse()
    check_target(given.results_file, (".csv",))
    sides = {"ours": (store.ROOT, Path(sys.executable)), "other": (given.against.absolute(), _python(given))}
    rows = []
    for what in given.what:
        pairs = [
            {name: _launch(given, what, name, *side) for name, side in sides.items()} for _ in range(given.repeats)
        ]
        rows.append(_row(given, what, pairs))
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if given.results_file:
        for row in rows:
            append_row(given.results_file, row)


def _python(given: argparse.Namespace) -> Path:
    python = (given.python or given.against / ".venv/bin/python").absolute()
    for path in (given.against / "scripts/sweep.py", python):
        if not path.exists():
            raise Refusal(f"{path} does not exist; --against is a checkout, --python its interpreter")
    return python


def _launch(given: argparse.Namespace, what: str, name: str, root: Path, python: Path) -> dict[str, Any]:
    """Launch the sweep from a checkout into an empty folder. Seconds, and per run what its files say."""
    with tempfile.TemporaryDirectory(prefix=f"softmlp-{name}-") as scratch:
        sweep = Path(scratch, f"{what}.py")
        sweep.write_text(LADDER if what == "ladder" else TINY.replace("RUNS", str(given.runs)))
        words = [
            str(python),
            str(root / "scripts/sweep.py"),
            "launch",
            str(sweep),
            "--cluster",
            "local",
            "--threads",
            "1",
        ]
        words += ["--slots", str(given.slots), *(shlex.split(given.flags) if name == "ours" else [])]
        # Tiny data are written anew by each; a data set that must be downloaded is shared.
        data = given.data_dir.absolute() if what == "ladder" else Path(scratch, "data")
        data.mkdir(exist_ok=True)
        env = {**os.environ, "SOFTMLP_RESULTS": str(Path(scratch, "results")), "PYTHONPATH": str(root)}
        began = time.time()
        done = subprocess.run(
            [*words, "--data-dir", str(data)], cwd=root, env=env, capture_output=True, text=True, check=False
        )
        seconds = time.time() - began
        folders = sorted(Path(scratch, "results", "runs").glob("*"))
        statuses = [store.read_json(folder / "status.json") for folder in folders]
        if done.returncode or not statuses or any(status.get("state") != store.DONE for status in statuses):
            last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise Refusal(f"the launch of {root} failed: {last}", 1)
        steps = _steps(statuses, 128 if what == "ladder" else 64)
        print(f"{what} {name}: {seconds:.1f} s on {given.slots} slots, steps {steps:.1f} s", flush=True)
        own = statistics.median(status["seconds"] for status in statuses)
        # To the last run and not to the report: what runs cost.
        trained = max(status["heartbeat"] for status in statuses) - began
        names = [folder.name.partition("-")[2] for folder in folders]
        return {
            "seconds": seconds if what == "ladder" else given.slots * trained / len(statuses) - own,
            "acc1": dict(zip(names, (status["acc1"] for status in statuses), strict=True)),
        }


def _steps(statuses: list[dict[str, Any]], batch: int) -> float:
    """Seconds of the steps of all runs, by their rates, one after another."""
    return sum(status["steps"] * batch / status["images_per_s"] for status in statuses)


def _row(given: argparse.Namespace, what: str, pairs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    from rich.table import Table

    ratios = sorted(pair["other"]["seconds"] / pair["ours"]["seconds"] for pair in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    ours, other = (statistics.median(pair[name]["seconds"] for pair in pairs) for name in ("ours", "other"))
    found = {name: pairs[0][name]["acc1"] for name in ("ours", "other")}
    both = [key for key in found["ours"] if key in found["other"]]
    gaps = [found["ours"][key] - found["other"][key] for key in both]
    if what == "ladder":
        table = Table("run", "acc1", "acc1 of the other", "difference")
        for key, gap in zip(both, gaps, strict=True):
            table.add_row(key, *(f"{found[name][key]:.2f}" for name in ("ours", "other")), f"{gap:+.2f}")
        show(table)
    note = (
        f"ours {ours:.3f} s, other {other:.3f} s; {len(both)} accuracies, mean difference {statistics.mean(gaps):+.3f}"
    )
    note += f", largest {max(map(abs, gaps)):.2f}" + (f"; {given.flags}" if given.flags else "")
    return {
        "what": what, "ratio": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3), "n": len(ratios),
        "note": note, "processor": processor(),
    }  # fmt: skip


if __name__ == "__main__":
    run_main(main)
