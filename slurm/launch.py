"""Launch a sweep: train what is missing, wherever it stands, and return when every run is done or failed.

Each place to compute is one function that starts processes and then looks at folders (slurm/local.py); what they have
in common is here.
"""

from typing import Any, Literal

from engine import store
from engine.errors import Refusal
from engine.run import Run, make_how
from engine.signals import CODES, Stop
from slurm import claims, local, progress
from slurm.progress import ENDED, Status
from slurm.sweep import Sweep

Cluster = Literal["auto", "local", "debug"]


def launch(
    sweep: Sweep, how: dict[str, Any], *, cluster: Cluster = "auto", slots: int | None = None, retry: bool = False
) -> list[Status]:
    """Train every run that is not done; the final statuses, in the order of the sweep, each "done" or "failed".

    Args:
        how: fields of engine.run.How; the number of threads follows from the slots where it is not given.
        cluster: auto and local are worker processes on this machine; debug trains in this process.
        slots: runs at a time; by default one per GPU, or per core where there is none.
        retry: also those that failed in an earlier launch; they go on from their last checkpoint.

    Raises:
        Refusal: nothing could be started; or, after Ctrl-C or SIGTERM, with the exit code 130 or 143.
    """
    gpus = local.visible_gpus(how.get("device", "auto"))
    if how.get("device") == "cuda" and not gpus:
        raise Refusal("--device cuda, but this machine shows no GPU; leave --device out to use the CPU")
    slots = 1 if cluster == "debug" else slots or len(gpus) or local.cores()
    how = {"threads": max(1, local.cores() // slots), **how}
    sweep.make_folder()
    with local.only_launcher(sweep):
        if retry:
            _forget_failures(sweep)
        statuses = progress.Watch(sweep).look()
        left = [run for run, status in zip(sweep.runs, statuses, strict=True) if status["state"] not in ENDED]
        if not left:
            return statuses
        _prepare(left, how)
        places = "in this process" if cluster == "debug" else f"{slots} at a time on {how['threads']} threads each"
        print(f"{sweep.name}: {_count_done(statuses)} runs done, {len(left)} to train, {places}", flush=True)
        with Stop().on(CODES) as stop, progress.view(sweep, slots) as view:
            if cluster == "debug":
                local.train_inline(sweep, how, view, stop)
            else:
                local.train_all(sweep, how, slots, gpus, view, stop)
        statuses = progress.Watch(sweep).look()
        if any(status["state"] not in ENDED for status in statuses):
            raise Refusal(f"stopped with {_count_done(statuses)} runs done; all is saved, repeat the command", stop())
        return statuses


def _prepare(left: list[Run], how: dict[str, Any]) -> None:
    """What must hold before a worker starts: models that can be built, the data, and a folder per run."""
    from engine import beton
    from engine.train import preflight

    data_dir = make_how(how).data_dir
    for run in {
        (run.rung, run.dataset, run.img_size, run.drop_path, run.initial_checkpoint): run for run in left
    }.values():
        preflight(run, store.folder_of(run, store.results_dir().absolute()))
    for dataset, img_size, splits in dict.fromkeys((run.dataset, run.img_size, run.splits) for run in left):
        beton.ensure(dataset, img_size, data_dir, splits=splits)
    for run in left:
        store.make_folder(run, store.folder_of(run, store.results_dir().absolute()))


def _forget_failures(sweep: Sweep) -> None:
    for folder in sweep.folders:
        path = folder / "status.json"
        if store.read_json(path).get("state") == store.FAILED:
            with claims.hold(folder / ".lock") as owned:
                if owned:
                    store.write_json(path, {**store.read_json(path), "state": store.STOPPED})


def _count_done(statuses: list[Status]) -> str:
    return f"{sum(status['state'] == store.DONE for status in statuses)} of {len(statuses)}"
