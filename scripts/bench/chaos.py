"""Kill a run at random moments, damage its newest checkpoint now and then, and compare the end bit for bit.

Each attempt is a fork of a process that has imported everything, so that a hundred deaths take minutes. Prints one line
per death and, at the end, whether weights, metrics and CSV equal those of a run that was left alone.
"""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

from engine.cli.flags import Parser, run_main
from engine.errors import Refusal

COMPARED = ("summary.csv", "metrics.jsonl", "args.yaml")


def main() -> None:
    parser = Parser(prog="scripts/bench/chaos.py", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="deaths before the run is left to end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damage")
    given = parser.parse()
    random.seed(given.seed)

    os.environ["OMP_NUM_THREADS"] = "1"  # a fork does not take threads along
    import torch

    from engine import train  # noqa: F401 - imported here so that no attempt has to
    from engine.data.ensure import ensure
    from engine.run import make_how, make_run

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        ensure("digits", 8, root / "data", say=lambda line: None)
        run = make_run(
            {
                "model_kwargs": {"depth": 2, "dim": 16},
                "epochs": 60,
                "batch_size": 64,
                "lr": 2e-3,
                "warmup_epochs": 2,
                "crop_pad": 1,
                "hflip": 0.5,
                "mixup": 0.2,
                "drop_path": 0.1,
                "model_ema": True,
                "model_ema_warmup": True,
                "amp": True,
            }
        )
        how = make_how({"data_dir": root / "data", "threads": 1, "log_interval": 1, "checkpoint_interval": 3})
        child = attempt(run, root / "left-alone", how)
        os.waitpid(child, 0)
        seconds = whole(run, root / "timed", how)
        deaths, damages, endings = 0, 0, 0
        while deaths < given.kills:
            child = attempt(run, root / "killed", how)
            time.sleep(random.uniform(0.02, 0.15 * seconds))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):  # it ended before the signal came: begin anew, so that every death counts
                endings += 1
                same(root / "left-alone", root / "killed")
                for path in sorted((root / "killed").iterdir()):
                    path.unlink()
                continue
            deaths += 1
            what = damage(root / "killed") if random.random() < 0.4 else ""
            damages += bool(what)
            print(f"death {deaths}{what}", flush=True)
        whole(run, root / "killed", how)
        same(root / "left-alone", root / "killed")
        print(f"the same bits after {deaths} deaths and {damages} damaged checkpoints, and at {endings} endings before")


def attempt(run, folder: Path, how) -> int:
    """Fork a process that trains; its number."""
    child = os.fork()
    if child:
        return child
    from engine.train import train

    code = 1
    try:
        train(run, folder, how)
        code = 0
    finally:
        os._exit(code)


def whole(run, folder: Path, how) -> float:
    """Train to the end; seconds. Raises Refusal if it does not get there."""
    began = time.monotonic()
    _, status = os.waitpid(attempt(run, folder, how), 0)
    if status:
        raise Refusal(f"the run did not end by itself (status {status}); its log: {folder}/log.txt", 1)
    return time.monotonic() - began


def damage(folder: Path) -> str:
    """Spoil the newest checkpoint if there is one before it to fall back to; what was done."""
    paths = sorted(folder.glob("checkpoint-*"))
    if len(paths) < 2 or not paths[-1].stat().st_size:  # or it was emptied before
        return ""
    data = bytearray(paths[-1].read_bytes())
    kind = random.choice(("cut", "emptied", "a bit flipped"))
    if kind == "a bit flipped":
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    paths[-1].write_bytes({"cut": bytes(data[: random.randrange(len(data))]), "emptied": b""}.get(kind, bytes(data)))
    return f", {paths[-1].name} {kind}"


def same(expected: Path, got: Path) -> None:
    import torch

    for name in COMPARED:
        if (expected / name).read_bytes() != (got / name).read_bytes():
            raise Refusal(f"{name} differs from that of the run that was left alone", 1)
    for name in ("last.pth.tar", "model_best.pth.tar"):
        a, b = (torch.load(folder / name, weights_only=True)["state_dict"] for folder in (expected, got))
        if not all(torch.equal(a[key], b[key]) for key in a):
            raise Refusal(f"the weights of {name} differ from those of the run that was left alone", 1)


if __name__ == "__main__":
    run_main(main)
