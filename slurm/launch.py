"""Launch a sweep: train what is missing, wherever it stands.

Each place to compute starts processes and then looks at folders: slurm/queue/local.py on this machine,
slurm/cluster/submit.py on a cluster. What they have in common is here. The local queue returns when every run has
ended; SLURM's at once.
"""

import contextlib
import importlib.util
import math
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import CLASSES, CLUSTER, DATA, MACHINE, TIMED_OUT, Refusal
from engine.folder import lease, store
from engine.run import Run, make_how
from engine.signals import CODES, Stop
from slurm.cluster import clusters, scheduler, snapshot, submit
from slurm.cluster.clusters import Resources
from slurm.define.sweep import Sweep
from slurm.queue import local, probing, progress, worker
from slurm.queue.progress import Status
from slurm.queue.worker import ended

KINDS = ("unfinished", "failed", "timeout", "cancelled")
WHY = ("error_class", "error", "exit_code")  # of status.json, where a run did not end well
PATIENCE_SECONDS = 60.0  # another launcher submits for some seconds; a local one has the sweep until its end


def launch(
    sweep: Sweep,
    how: dict[str, Any],
    *,
    cluster: str = "auto",
    slots: int | None = None,
    retry: bool = False,
    kinds: Collection[str] = ("unfinished",),
    flags: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    keep_code: bool = True,
) -> list[Status]:
    """Train the runs of the given kinds; the statuses of all runs, in the order of the sweep, when it returns.

    On a cluster `unprobed` in a status says that the jobs are still to measure the sweep's probes on that run.

    Args:
        how: fields of engine.run.How; the number of threads follows from the slots or cores where it is not given.
        cluster: local are worker processes on this machine; debug trains in this process; slurm, or a profile of
            slurm/clusters.yaml, submits and returns; auto is slurm where a controller answers, otherwise local.
        slots: runs at a time on this machine, which auto then means; by default one per GPU, or per core.
        retry: also those that failed in an earlier launch; they go on from their last checkpoint.
        kinds: of KINDS; unfinished is what has neither ended nor been cancelled.
        flags: fields of slurm.cluster.clusters.Resources that win over those of profile and sweep.
        overrides: the same, where the runs need just these: elements submitted earlier are then kept from them.
        keep_code: jobs run a copy of the code as it is now.

    Raises:
        Refusal: nothing could be started; or, after Ctrl-C or SIGTERM, with the exit code 130 or 143.
    """
    asked, cluster = cluster, clusters.pick("local" if cluster == "auto" and slots else cluster)
    kinds = {*kinds, *(["failed"] if retry else [])}
    flags = {**(flags or {}), **(overrides or {})}
    if cluster in ("local", "debug"):
        if flags:
            raise Refusal(f"{', '.join(flags)}: for SLURM only, and this trains on this machine ({asked}); use --slots")
        return _here(sweep, how, cluster, slots, kinds)
    if slots:
        raise Refusal("--slots is for this machine only; on SLURM it is --array-parallelism and --pack")
    shapes = _shapes(sweep, cluster, flags)  # refused before anything is written
    sweep.make_folder()
    with local.only_launcher(sweep, PATIENCE_SECONDS):
        _submit(sweep, how, cluster, shapes, kinds, bool(overrides), keep_code)
    left = set(probing.left(sweep.folders, sweep.probes))
    return [{**worker.look(folder), **({"unprobed": True} if folder in left else {})} for folder in sweep.folders]


def _here(sweep: Sweep, how: dict[str, Any], cluster: str, slots: int | None, kinds: set[str]) -> list[Status]:
    gpus = local.visible_gpus(how.get("device", "auto"))
    if how.get("device") == "cuda" and not gpus:
        raise Refusal("--device cuda, but this machine shows no GPU; leave --device out to use the CPU")
    slots = 1 if cluster == "debug" else slots or len(gpus) or local.cores()
    how = {"threads": max(1, local.cores() // slots), **how}
    sweep.make_folder()
    with local.only_launcher(sweep):
        chosen, renewed = _choose(sweep, kinds)
        whole = progress.Watch(sweep)
        if not chosen:
            return whole.look()
        if not _has_torch():
            raise Refusal("training on this machine needs torch, which is not installed; make setup does it", MACHINE)
        _prepare([sweep.runs[index] for index in chosen], how)
        _release(sweep, chosen, renewed)
        # Only what was not asked for is left out; what is done already is shown as done.
        rest = [index for index, status in enumerate(whole.look()) if index in chosen or ended(status)]
        part = sweep if len(rest) == len(sweep.runs) else replace(sweep, runs=tuple(sweep.runs[i] for i in rest))
        spread = f"here, {slots} at a time on {how['threads']} threads each"
        places = "in this process" if cluster == "debug" else spread
        print(f"{sweep.name}: {_count_done(whole.look())} runs done, {len(chosen)} to train, {places}", flush=True)
        with Stop().on(CODES) as stop, progress.view(part, slots) as view:
            if cluster == "debug":
                local.train_inline(part, how, view, stop)
            else:
                local.train_all(part, how, slots, gpus, view, stop)
        statuses = whole.look()
        if any(not ended(statuses[index]) for index in chosen):
            raise Refusal(f"stopped with {_count_done(statuses)} runs done; all is saved, repeat the command", stop())
        return statuses


def _submit(
    sweep: Sweep,
    how: dict[str, Any],
    cluster: str,
    shapes: list[Resources],
    kinds: set[str],
    alone: bool,
    keep_code: bool,
) -> None:
    """Submit what the runs of the kinds lack, by shape, and say so; `alone`: no other element may take these runs."""
    live = submit.live(sweep)
    if live is None:
        raise Refusal("squeue does not answer; what was submitted goes on; repeat the command", CLUSTER)
    submit.mend(sweep.jobs_folder, live)
    _free(sweep.folders)
    name, there = local.new_launch_id(), {element.comment.partition("/")[0] for element in live}
    chosen, renewed = _choose(sweep, kinds)
    # Elements that train also probe; where nothing is left to train, some come for the probes alone.
    unprobed = set() if chosen else {str(folder) for folder in probing.left(sweep.folders, sweep.probes)}
    groups: dict[Resources, list[str]] = {}
    for index, folder in enumerate(map(str, sweep.folders)):
        if index in chosen or folder in unprobed:
            groups.setdefault(shapes[index], []).append(folder)
    left = [submit.Shape(resources, tuple(folders)) for resources, folders in groups.items()]
    those = [] if alone else live
    todo = [(shape, count) for shape in left if (count := submit.missing(shape, those, sweep.jobs_folder, renewed))]
    if unprobed:
        todo = [(shape, math.ceil(count / probing.BATCH)) for shape, count in todo]
    statuses = [worker.look(folder) for folder in sweep.folders]
    what = f"{len(unprobed)} to probe" if unprobed else f"{len(chosen)} to train"
    print(f"{sweep.name}: {_count_done(statuses)} runs done, {what} on {cluster}", flush=True)
    if not todo:
        if chosen or unprobed:
            _release(sweep, chosen, renewed, there)
            print(f"nothing to submit: {len(live)} elements wait or run already, and take all that is left")
        return
    code = snapshot.take(sweep.folder.parent) if keep_code else store.ROOT
    note = {"cluster": cluster, "commit": snapshot.label(code), "snapshot": str(code) if keep_code else None}
    note["command"] = shlex.join(sys.argv)
    launched = submit.Launch(sweep, name, how, code, note)
    for shape, count in todo:
        launched.check(shape, count)
    for node, (why, path) in launched.exclude.items():
        print(f"without {node}, which had a fault ({why}); if that is mended: rm {path}", flush=True)
    _tell_of_gpus(sweep, how, [shape.resources for shape, _ in todo])
    _prepare([sweep.runs[index] for index in sorted(chosen)], how)
    _release(sweep, chosen, renewed, there, name if alone else None)
    if keep_code and (jobs := scheduler.own_jobs()) is not None:
        snapshot.prune(sweep.folder.parent, jobs, code)
    for shape, count in todo:
        made = launched.submit(shape, count)
        few = f" of {count}, as many as one may have" if made.elements < count else ""
        runs = f"{len(shape.folders)} run" + "s" * (len(shape.folders) > 1)
        print(f"job {made.job}: {made.elements} elements{few} for {runs}, each {shape.resources.told()}", flush=True)


def _tell_of_gpus(sweep: Sweep, how: dict[str, Any], shapes: list[Resources]) -> None:
    """Say once, at the first launch of a sweep, that the nodes have GPUs and nothing asks for one."""
    if next(sweep.jobs_folder.glob("*/launch.json"), None) or how.get("device") == "cpu":
        return
    for resources in dict.fromkeys(shapes):
        if not resources.gpus and (there := scheduler.gpus(resources.partition)):
            print(f"warning: nodes here have GPUs ({there}), and these jobs ask for none; --gpus 1 does", flush=True)
            return


def _free(folders: list[Path]) -> None:
    """Take runs from jobs that SLURM no longer has: the next element would only find that they are owned, and leave.

    SLURM is asked for each job itself, as a run may belong to another sweep too, or to a `train.py` in an allocation.
    A process of such a job that lives on, where its node is cut off, finds itself superseded.
    """
    owned = {folder: owner for folder in folders if (owner := lease.owner(folder)) and owner["job"]}
    gone = scheduler.gone(owned.values())
    for folder, owner in owned.items():
        if owner["job"] in gone and not scheduler.waits_anew(owner["job"]):  # which takes its runs up by itself
            with contextlib.suppress(Refusal):  # somebody else was faster
                lease.claim(folder, gone=owner["job"]).release()


def _shapes(sweep: Sweep, cluster: str, flags: Mapping[str, Any]) -> list[Resources]:
    """The resources of each run."""
    seen: dict[tuple, Resources] = {}
    found = []
    for need in sweep.needs or ({},) * len(sweep.runs):
        key = tuple(sorted(need.items()))
        if key not in seen:
            seen[key] = clusters.resources(cluster, need, flags)
        found.append(seen[key])
    return found


def _choose(sweep: Sweep, kinds: set[str]) -> tuple[set[int], set[str]]:
    """Runs of the kinds, by index; and the folders of those that had ended, which may now be trained again."""
    statuses = [worker.look(folder) for folder in sweep.folders]
    chosen = {index for index, status in enumerate(statuses) if kinds & _kinds(status)}
    return chosen, {str(sweep.folders[index]) for index in chosen if ended(statuses[index])}


def _release(
    sweep: Sweep, chosen: set[int], renewed: set[str], there: Collection[str] = (), owner: str | None = None
) -> None:
    """Let the chosen runs be trained: also those that had ended, and those reserved for a launch that is gone.

    Args:
        renewed: folders of those that had ended; what ended since then stays.
        there: launches that have live elements.
        owner: the launch to reserve the runs for.
    """
    for index in sorted(chosen):
        folder = sweep.folders[index]
        status = worker.look(folder)
        before = status.get(worker.RESERVED)
        reserved = owner or (before if before in there else None)
        again = str(folder) in renewed if ended(status) else reserved != before
        if again and status["owner"] is None and status["state"] != store.DONE:
            store.make_folder(sweep.runs[index], folder)
            _renew(folder, status, reserved)


def _kinds(status: Status) -> set[str]:
    timeout = {"timeout"} if status.get("error_class") == CLASSES[TIMED_OUT] and not status["owner"] else set()
    return {"unfinished" if not ended(status) else status["state"]} | timeout


def _renew(folder: Path, status: Status, reserved: str | None) -> None:
    """Let a run be trained again, or for the first time, from its last checkpoint, by a launch or by any."""
    kept = {key: value for key, value in status.items() if key not in ("owner", "silent", worker.RESERVED, *WHY)}
    kept["state"] = store.STOPPED if status["state"] != store.PLANNED else store.PLANNED
    store.write_json(folder / "status.json", kept | ({worker.RESERVED: reserved} if reserved else {}))
    (folder / worker.CANCEL).unlink(missing_ok=True)


def _prepare(left: list[Run], how: dict[str, Any]) -> None:
    """What must hold before a worker starts: models that can be built, the data, and a folder per run."""
    results = store.results_dir().absolute()
    data_dir = make_how(how).data_dir
    new = [run for run in left if not (store.folder_of(run, results) / "env.json").exists()]  # never began
    if new and (lacking := _lacking_torch()) is not None:
        print(f"models are not tried out here but in the jobs: {lacking}", flush=True)
    elif new:
        from engine.models import preflight

        for run in {
            (
                run.rung,
                run.dataset,
                run.img_size,
                run.drop_path,
                run.initial_identity,
                run.batch_size,
                run.mode,
                bool(run.mixup or run.cutmix),
            ): run
            for run in new
        }.values():
            preflight(run, store.folder_of(run, results))
    from engine.data.ensure import ensure

    for dataset, size, splits in dict.fromkeys((run.dataset, run.stored, run.splits) for run in left):
        try:
            ensure(dataset, size, data_dir, splits=splits)
        except ImportError as error:
            words = f"writing the .beton files of {dataset} needs a package that is not here ({error})"
            do = f"python scripts/make_beton.py --dataset {dataset}, where it is, with --data-dir {data_dir}"
            raise Refusal(f"{words}; run {do}", DATA) from None
    for run in left:
        if not (store.folder_of(run, results) / "args.yaml").exists():  # otherwise the worker compares it
            store.make_folder(run, store.folder_of(run, results))


def _has_torch() -> bool:
    """Whether torch is installed, without the seconds that importing it takes."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


def _lacking_torch() -> str | None:
    """Why torch cannot be imported, as on a login node that only submits; None where it can."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _count_done(statuses: list[Status]) -> str:
    return f"{sum(status['state'] == store.DONE for status in statuses)} of {len(statuses)}"
