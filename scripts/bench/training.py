"""Measure the engine against what it must not be slower than; every figure is a ratio of two things timed in turn.

steady   images/s of the engine with its data, over a bare loop on one batch in memory (same model and precision)
epoch    images/s of the engine with its data, over timm's train.py on the same model, batch and augmentation
loader   images/s of the loader with the standard augmentation, over timm's loader with the same workers
mfu      matrix-product share of the engine's training: FLOP/s of the model over those of a matrix product
start    seconds from process start to the first step, over those with an empty cache of compiled kernels
begin    seconds from process start to the first step with kernels compiled, over those of timm's train.py
memory   peak memory of an engine process without mapped files (data, libraries), over that of a bare loop
heap     images/s of the engine with its data on a CPU, over those where malloc gives back what torch frees
"""

import argparse
import contextlib
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.tables import append_row, check_target
from engine.errors import Refusal
from engine.run import DATA_DIR, Run, make_how, make_run

MODELS = ("bmlp_b6_w512", "mixer_1m", "convmixer_1m")
WIDE = "bmlp_b12_w1024"
PEAKS = r"VmHWM:\s+(\d+).*RssAnon:\s+(\d+)"  # of /proc/PID/status, kB
BATCH = {"lattice_s": 128, "bmlp_b12_w1024": 4096, "bmlp_b6_w512": 1024}


def main() -> None:
    parser = Parser(
        prog="scripts/bench/training.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=(*MEASURES, "bare", *HEAPS), metavar="{" + ",".join(MEASURES) + "}")
    parser.add_argument("--model", dest="models", nargs="+", help=f"default: {' '.join(MODELS)}; mfu: {WIDE}")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="with the .beton files of cifar10")
    parser.add_argument("--raw-dir", type=Path, help="CIFAR-10 as an image folder (train/, test/), for timm's loader")
    parser.add_argument("--timm-source", type=Path, help="a checkout of timm, whose train.py its wheel leaves out")
    parser.add_argument("--repeats", type=int, default=5, help="of each of the two, in turn")
    parser.add_argument("--steps", type=int, default=20, help="training steps of one repeat")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--results-file", type=Path, help="also append the rows to this CSV")
    given = parser.parse()
    check_target(given.results_file, (".csv",))
    from rich.table import Table

    from engine.folder.environment import processor

    rows = []
    for what in given.what:
        if what == "bare":
            _bare(given, given.models[0])
            return
        if what in HEAPS:
            _heap(given, given.models[0], what)
            return
        defaults = (WIDE,) if what == "mfu" else ("",) if what in ("loader", "start", "begin") else MODELS
        for model in given.models or defaults:
            ratios, note = MEASURES[what](given, model)
            low, middle, high = _quartiles(ratios)
            rows.append(
                {"what": what, "model": model, "ratio": middle, "q1": low, "q3": high, "n": len(ratios), "note": note}
                | {"processor": processor()}
            )
            print(
                " ".join(
                    f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}"
                    for key, value in rows[-1].items()
                ),
                flush=True,
            )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    show(table)
    if given.results_file:
        for row in rows:
            append_row(given.results_file, row)


def steady(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    import torch

    torch.set_num_threads(given.threads)
    run, ratios, rates = _run(given, model), [], []
    loop = _BareLoop(run)
    for _ in range(given.repeats):
        ours, bare = _engine_rate(given, run), loop.rate(given.steps)
        ratios.append(ours / bare)
        rates.append(ours)
    return ratios, f"{statistics.median(rates):,.0f} images/s, batch {run.batch_size}, bfloat16"


def epoch(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    if given.timm_source is None or given.raw_dir is None:
        raise Refusal("bench epoch needs --timm-source and --raw-dir")
    import torch

    torch.set_num_threads(given.threads)
    run, ratios, notes = _run(given, model), [], []
    for _ in range(given.repeats):
        ours, timms = _engine_rate(given, run), _timm_rate(given, run)
        ratios.append(ours / timms)
        notes.append(timms)
    note = f"timm {statistics.median(notes):,.0f} images/s, batch {run.batch_size}, bfloat16, pad-crop and flip"
    return ratios, f"{note}; {_versions(given)}"


def loader(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    if given.raw_dir is None:
        raise Refusal("bench loader needs --raw-dir")
    from timm.data import create_dataset, create_loader

    from engine.data.loaders import make_loaders

    run = _run(given, "mixer_1m").but(scale=[0.08, 1.0], crop_pad=0, batch_size=512)
    ours, _, _ = make_loaders(run, make_how({"data_dir": given.data_dir, "workers": 2}))
    timms = create_loader(
        create_dataset("", str(given.raw_dir), split="train"), input_size=(3, 32, 32), batch_size=512, is_training=True,
        use_prefetcher=False, no_aug=False, color_jitter=None, num_workers=2, persistent_workers=True,
    )  # fmt: skip
    for _ in ours.epoch(0):
        break
    ratios, rates = [], []
    for repeat in range(given.repeats):
        began = time.perf_counter()
        count = sum(len(labels) for _, labels in ours.epoch(repeat))
        rate = count / (time.perf_counter() - began)
        stream = iter(timms)
        next(stream)
        began, count = time.perf_counter(), 0
        for _, (_, labels) in zip(range(20), stream, strict=False):
            count += len(labels)
        theirs = count / (time.perf_counter() - began)
        del stream
        ratios.append(rate / theirs)
        rates.append(rate)
    return ratios, f"{statistics.median(rates):,.0f} images/s; random resized crop and flip, 2 workers"


def mfu(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    import torch

    from engine.cost.peak import matmul_flops
    from engine.cost.profile import profile

    torch.set_num_threads(given.threads)
    # Three epochs, as the first steps of a process pay for fresh memory: up to twice the time of those that follow.
    run, ratios = _run(given, model).but(epochs=3), []
    flops = 3 * profile(model, img_size=32, in_chans=3, num_classes=10)["flops"]
    for _ in range(given.repeats):
        matmul_flops.cache_clear()
        rate = _engine_rate(given, run)
        matmul_flops.cache_clear()
        ratios.append(rate * flops / matmul_flops("cpu", torch.bfloat16, given.threads))
    return ratios, f"batch {run.batch_size}, bfloat16, {given.steps * 3} steps, three times the forward FLOPs per image"


def start(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    ratios, firsts = [], []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as cache:
            first, second = (_first_step(given, cache) for _ in range(2))
        ratios.append(second / first)
        firsts.append(first)
    return ratios, f"first {statistics.median(firsts):.1f} s; the first run compiles the kernels into an empty cache"


def begin(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    if given.timm_source is None or given.raw_dir is None:
        raise Refusal("bench begin needs --timm-source and --raw-dir")
    run, ratios, ours = _run(given, "mixer_nano").but(model_kwargs={"patch_size": 4}, batch_size=256), [], []
    with tempfile.TemporaryDirectory() as cache:
        _first_step(given, cache)
        for _ in range(given.repeats):
            ours.append(_first_step(given, cache))
            began = time.time()
            with contextlib.closing(_timm_steps(given, run)) as steps:
                next(steps)
                ratios.append(ours[-1] / (time.time() - began))
    return ratios, f"ours {statistics.median(ours):.1f} s, mixer_nano; {_versions(given)}"


def memory(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    resident, own = [], []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as name:
            run = _run(given, model)
            recipe = Path(name) / "run.yaml"
            recipe.write_text("\n".join(f"{key}: {value}" for key, value in _flags(given, run).items()))
            ours = _peak([sys.executable, "-m", "scripts.train", "-c", str(recipe), "--output", name])
        bare = _peak(_self(given, model, "bare"))
        resident.append(ours[0] / bare[0])
        own.append(ours[1] / bare[1])
    return own, f"without mapped files (data, libraries); all that is resident {statistics.median(resident):.3f}"


def heap(given: argparse.Namespace, model: str) -> tuple[list[float], str]:
    ratios, rates = [], []
    for _ in range(given.repeats):  # in processes of their own, as what malloc was told holds for all of a process
        told = [subprocess.run(_self(given, model, what), check=True, capture_output=True, text=True) for what in HEAPS]
        plain, kept = (float(process.stdout.split()[-1]) for process in told)
        ratios.append(kept / plain)
        rates.append(kept)
    return ratios, f"{statistics.median(rates):,.0f} images/s, batch {_run(given, model).batch_size}, bfloat16"


MEASURES = {"steady": steady, "epoch": epoch, "loader": loader, "mfu": mfu, "start": start, "begin": begin}
MEASURES |= {"memory": memory, "heap": heap}
HEAPS = ("heap-plain", "heap-kept")  # what a process of `heap` is started as


class _BareLoop:
    """The same model, optimizer and precision on one batch that is in memory already."""

    def __init__(self, run: Run) -> None:
        import torch

        from engine import optim
        from engine.models import create

        self.model = create(run, 10, 3)
        self.optimizer = optim.make_optimizer(run, self.model)
        self.x_BCHW = torch.randn(run.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (run.batch_size,))
        self.loss = torch.nn.CrossEntropyLoss()

    def rate(self, steps: int) -> float:
        import torch

        for step in range(steps + 1):
            if step == 1:
                began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(self.x_BCHW)
            loss = self.loss(logits.float(), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return steps * len(self.labels) / (time.perf_counter() - began)


def _self(given: argparse.Namespace, model: str, what: str) -> list[str]:
    """This script as another process that measures one thing."""
    words = ["--model", model, "--steps", str(given.steps), "--threads", str(given.threads)]
    return [sys.executable, "-m", "scripts.bench.training", what, *words, "--data-dir", str(given.data_dir.absolute())]


def _heap(given: argparse.Namespace, model: str, what: str) -> None:
    from engine import models

    if what == "heap-plain":
        models.keep_memory = lambda: None
    print(_engine_rate(given, _run(given, model)))


def _bare(given: argparse.Namespace, model: str) -> None:
    import torch

    torch.set_num_threads(given.threads)
    print(_BareLoop(_run(given, model)).rate(given.steps))


def _run(given: argparse.Namespace, model: str) -> Run:
    batch = BATCH.get(model, 256)
    samples = min(batch * given.steps, 50_000)
    fields: dict[str, Any] = {"model": model, "dataset": "cifar10", "epochs": 1, "batch_size": batch, "amp": True}
    return make_run(fields | {"train_samples": samples, "crop_pad": 4, "hflip": 0.5})


def _flags(given: argparse.Namespace, run: Run) -> dict[str, Any]:
    record = {k: v for k, v in run.record().items() if getattr(run, k) != Run.model_fields[k].default}
    return {**record, "data_dir": given.data_dir.absolute(), "threads": given.threads}


def _engine_rate(given: argparse.Namespace, run: Run) -> float:
    """images/s of one epoch of training, as the engine itself reports it; the evaluation does not count."""
    from engine.folder import store
    from engine.train import train

    with tempfile.TemporaryDirectory() as name:
        train(run, Path(name), make_how({"data_dir": given.data_dir, "threads": given.threads}))
        return store.read_status(Path(name))["images_per_s"]


def _timm_rate(given: argparse.Namespace, run: Run) -> float:
    """images/s of timm's train.py over as many steps, from its own log, without its first batch."""
    with contextlib.closing(_timm_steps(given, run)) as steps:
        times = [seconds for _, seconds in zip(range(given.steps + 1), steps, strict=False)]
    if len(times) < 2:
        raise Refusal("timm's train.py gave no rate; run it by hand to see why", 1)
    return run.batch_size * (len(times) - 1) / sum(times[1:])


def _versions(given: argparse.Namespace) -> str:
    """Which train.py was run with which timm: the wheel has no train.py, and the checkout's library is not imported."""
    found = re.search(r"__version__ = '(.+)'", (given.timm_source / "timm/version.py").read_text())
    return f"train.py of timm {found[1] if found else '?'} with timm {importlib.metadata.version('timm')}"


def _timm_steps(given: argparse.Namespace, run: Run) -> Iterator[float]:
    """Start timm's train.py; the seconds of each of its steps, as it logs them. Closing this ends it."""
    code = (
        "import runpy, sys, timm.models._registry as registry, archs\n"
        "def softmlp(pretrained=False, num_classes=10, in_chans=3, **kwargs):\n"
        f"    model = archs.create({run.model!r}, img_size=32, num_classes=num_classes, in_chans=3, "
        f"**{run.model_kwargs!r})\n"
        "    model.num_classes = num_classes\n"
        "    model.pretrained_cfg = model.default_cfg = {'input_size': (3, 32, 32), 'crop_pct': 1.0}\n"
        "    return model\n"
        "registry._model_entrypoints['softmlp'] = softmlp\n"
        "registry._model_to_module['softmlp'] = 'mlp_mixer'\n"
        "sys.argv[0] = 'train.py'\n"
        f"runpy.run_path({str(given.timm_source / 'train.py')!r}, run_name='__main__')"
    )
    with tempfile.TemporaryDirectory() as name:
        flags = f"""--data-dir {given.raw_dir} --train-split train --val-split test --model softmlp --num-classes 10
            --img-size 32 -b {run.batch_size} --epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --opt adamw --lr 1e-3
            --device cpu --amp --amp-dtype bfloat16 -j 2 --train-crop-mode rkrc --scale 1 1 --ratio 1 1 --hflip 0.5
            --color-jitter 0 --smoothing 0 --log-interval 1 --output {name}""".split()
        process = subprocess.Popen(
            [sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for line in process.stdout:
                if match := re.search(r"Train: 0 \[ *(\d+)/.*Time: ([\d.]+)s", line):
                    yield float(match[2])
        finally:
            process.terminate()
            process.wait()


def _first_step(given: argparse.Namespace, cache: str) -> float:
    """Seconds from the start of a process of train.py to the end of its first step."""
    with tempfile.TemporaryDirectory() as name:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache}
        words = ["--data-dir", str(given.data_dir.absolute()), "--output", name, "--dataset", "cifar10"]
        words += ["--model", "mixer_nano", "--model-kwargs", "patch_size=4", "--train-samples", "256", "-b", "256"]
        words += ["--epochs", "1", "--crop-pad", "4", "--hflip", "0.5", "--log-interval", "1"]
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.train", *words],
            env=env,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        while not (found := list(Path(name).glob("runs/*/metrics.jsonl"))):
            if process.poll() not in (None, 0):
                raise Refusal("train.py ended before its first step; is cifar10 in --data-dir?", 1)
            time.sleep(0.01)
        seconds = found[0].stat().st_mtime - began
        process.wait()
    return seconds


def _peak(command: list[str]) -> tuple[int, int]:
    """Peak bytes of a process: all that is resident, and without mapped files, which processes share."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    status, own = Path("/proc", str(process.pid), "status"), 0
    while process.poll() is None and (found := re.search(PEAKS, status.read_text(), re.DOTALL)):
        resident, own = int(found[1]), max(own, int(found[2]))
        time.sleep(0.01)
    if process.wait():
        raise Refusal(f"{' '.join(command[1:4])} failed: {process.stderr.read().strip()}", 1)
    return resident * 1024, own * 1024


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


if __name__ == "__main__":
    run_main(main)
