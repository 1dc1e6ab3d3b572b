"""One training from a command line: its folder, its log and progress on the screen, its last words."""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.cli.flags import TimmFlags, add_config, add_fields
from engine.errors import CHECKPOINT, DATA, USAGE, Refusal
from engine.folder import store
from engine.run import How, Run, read_yaml

LINE_SECONDS = 15.0  # between lines on how far an epoch is, where there is no terminal


def add_flags(parser: argparse.ArgumentParser) -> None:
    """-c, --output, --experiment, --debug, and every field of Run and How."""
    add_config(parser)
    parser.add_argument("--output", type=Path, default=store.results_dir(), help="folder of all results")
    parser.add_argument("--experiment", help="folder under --output, instead of runs/SIGNATURE-MODEL-sSEED")
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    words = "show what every flag of timm's train.py is here, and what to do instead"
    parser.add_argument("--timm-flags", action=TimmFlags, nargs=0, default=argparse.SUPPRESS, help=words)
    add_fields(parser, Run)
    add_fields(parser, How)


def train_here(given: argparse.Namespace, run: Run, how: How) -> None:
    """Train `run` in this process, in the folder that the flags name; say where the results are."""
    from engine.data.ensure import ensure, settled

    if not _says_stored_size(given):
        run = settled(run, how.data_dir, lambda line: print(line, file=sys.stderr))
    folder = _experiment(given.output, given.experiment) if given.experiment else store.folder_of(run, given.output)
    from engine import distributed
    from engine.models import pick_device, preflight
    from engine.signals import CODES, Stop
    from engine.train import train

    distributed.start(how.device)
    try:
        pick_device(how)
        preflight(run, folder)
        fresh = not folder.exists()
        with _screen() as tell, Stop().on(CODES) as stop:
            distributed.first_only(lambda: ensure(run.dataset, run.stored, how.data_dir, splits=run.splits))
            try:
                train(run, folder, how, stop, tell)
            except Refusal as refusal:
                # What only reading data and weights can find out, such as a batch of more images than there are.
                if fresh and refusal.code in (USAGE, DATA, CHECKPOINT) and distributed.rank() == 0:
                    store.withdraw(folder)
                raise
    except BaseException as error:
        distributed.finish(error)
        raise
    first = distributed.rank() == 0
    distributed.finish()
    if not first:
        return
    status = store.read_status(folder)
    print(f"done: acc1 {status['acc1']:.2f} (best {status['best_acc1']:.2f}) after {run.epochs} epochs")
    print(f"results: {folder}")


def _says_stored_size(given: argparse.Namespace) -> bool:
    """Whether the flags or the YAML of -c do; args.yaml of a run says it even of the usual one."""
    return "stored_size" in given or ("config" in given and "stored_size" in read_yaml(given.config))


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[dict[str, Any]], None]]:
    """On a terminal a bar below the log; in a file or a pipe plain lines without control characters."""
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        yield lines(lambda line: print(line, file=sys.stderr, flush=True))
        return
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X", highlighter=None)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        bar = progress.add_task("starting")
        yield lambda fields: progress.update(
            bar, total=fields["steps"], completed=fields["step"], description=describe(fields)
        )


def lines(say: Callable[[str], None], every: float = LINE_SECONDS) -> Callable[[dict[str, Any]], None]:
    """What tells `say` where a run stands, in a line, once in so many seconds: the first one after as many."""
    last = time.monotonic()

    def tell(fields: dict[str, Any]) -> None:
        nonlocal last
        if fields.get("steps") and time.monotonic() - last >= every:
            last = time.monotonic()
            say(f"step {fields['step']}/{fields['steps']}  {describe(fields)}")

    return tell


def describe(fields: dict[str, Any]) -> str:
    """The fields of status.json that one wants to see, in one line; what is not known yet is left out."""
    parts = [
        ("epoch {epoch}/{epochs}", "epochs"),
        ("acc1 {acc1:.2f}", "acc1"),
        ("(best {best_acc1:.2f})", "best_acc1"),
        ("{images_per_s:,.0f} images/s", "images_per_s"),
        ("waiting for data {data_wait:.0%}", "data_wait"),
        ("MFU {mfu:.0%}", "mfu"),
        ("{memory_gb:.1f} GB", "memory_gb"),
        ("{eta_s:,.0f} s left", "eta_s"),
    ]
    return "  ".join(text.format(**fields) for text, key in parts if fields.get(key) is not None)


def _experiment(output: Path, name: str) -> Path:
    if name.startswith((".", "-", "/")) or ".." in Path(name).parts or "%" in name or len(name) > 200 or "\n" in name:
        raise Refusal(f"--experiment {name!r} is no name for a folder; use letters, digits, - and _")
    return output / name
