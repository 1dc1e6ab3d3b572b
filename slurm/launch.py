"""Launch a sweep: train what is missing, wherever it stands.

Each place to compute starts processes and then looks at folders: slurm/queue/local.py on this machine,
slurm/cluster/submit.py on a cluster. What they have in common is here. The local queue returns when every run has
ended; SLURM's at once.
"""

import contextlib
import math
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from engine.errors import CLUSTER, MACHINE, Refusal
from engine.folder import lease, store
from engine.signals import CODES, Stop
from slurm import escalate
from slurm.cluster import clusters, scheduler, snapshot, submit
from slurm.cluster.clusters import Resources
from slurm.cluster.submit import Shape
from slurm.define.sweep import Sweep
from slurm.prepare import has_torch, prepare
from slurm.queue import claims, local, probing, progress, tables, worker
from slurm.queue.choose import Chosen, choose
from slurm.queue.progress import Status
from slurm.queue.worker import ended

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
    finish: Sequence[str] = (),
    rule: escalate.Rule | None = None,
) -> list[Status]:
    """Train the runs of the given kinds; the statuses of all runs, in the order of the sweep, when it returns.

    What a published table has as done (slurm/queue/tables.py) is done, unless the kinds ask for it: then folders alone
    tell.

    On a cluster `unprobed` in a status says that the jobs are still to measure the sweep's probes on that run.

    Args:
        how: fields of engine.run.How; the number of threads follows from the slots or cores where it is not given.
        cluster: local are worker processes on this machine; debug trains in this process; slurm, or a profile of
            slurm/clusters.yaml, submits and returns; auto is slurm where a controller answers, otherwise local.
        slots: runs at a time on this machine, which auto then means; by default one per GPU, or per core.
        retry: also those that failed in an earlier launch; they go on from their last checkpoint.
        kinds: of slurm.queue.choose.KINDS; unfinished is what has neither ended nor been cancelled, published what a
            published table alone has as done.
        flags: fields of slurm.cluster.clusters.Resources that win over those of profile and sweep.
        overrides: the same, where the runs need just these: elements submitted earlier are then kept from them.
        keep_code: jobs run a copy of the code as it is now.
        finish: words of scripts/sweep.py that a job on the cluster runs when all others have ended; none for no job.
        rule: by which the memory of runs follows from what was seen.

    Raises:
        Refusal: nothing could be started; or, after Ctrl-C or SIGTERM, with the exit code 130 or 143.
    """
    asked, cluster = cluster, clusters.pick("local" if cluster == "auto" and slots else cluster)
    kinds = {*kinds, *(["failed"] if retry else [])}
    flags = {**(flags or {}), **(overrides or {})}
    if cluster in ("local", "debug"):
        if named := [*flags, *(["escalate"] if rule else [])]:
            raise Refusal(f"{', '.join(named)}: for SLURM only, and this trains on this machine ({asked}); use --slots")
        return _here(sweep, how, cluster, slots, kinds)
    if slots:
        raise Refusal("--slots is for this machine only; on SLURM it is --array-parallelism and --pack")
    needs, alone = _needs(sweep, cluster, flags), bool(overrides)
    if rule:
        grown = escalate.needs(sweep, needs, [worker.look(folder) for folder in sweep.folders], rule)
        alone, needs = alone or "memory" in kinds or "failed" in kinds, grown
    order = _Order(sweep, how, cluster, kinds, needs, alone, keep_code, tuple(finish))
    sweep.make_folder()
    with local.only_launcher(sweep, PATIENCE_SECONDS) as lock:
        _submit(order, lock)
    left = set(probing.left(sweep.folders, sweep.probes))
    statuses = _told(sweep, [worker.look(folder) for folder in sweep.folders], kinds)
    pairs = zip(sweep.folders, statuses, strict=True)
    return [{**status, **({"unprobed": True} if folder in left else {})} for folder, status in pairs]


@dataclass(frozen=True)
class _Order:
    """A launch on a cluster, as it was asked for."""

    sweep: Sweep
    how: dict[str, Any]
    cluster: str
    kinds: set[str]
    needs: list[Resources]
    """Of each run."""
    alone: bool
    """No other element may take these runs."""
    keep_code: bool
    finish: tuple[str, ...]


def _here(sweep: Sweep, how: dict[str, Any], cluster: str, slots: int | None, kinds: set[str]) -> list[Status]:
    """Train on this machine until all chosen runs have ended."""
    gpus = local.visible_gpus(how.get("device", "auto"))
    if how.get("device") == "cuda" and not gpus:
        raise Refusal("--device cuda, but this machine shows no GPU; leave --device out to use the CPU")
    slots = 1 if cluster == "debug" else slots or len(gpus) or local.cores()
    how = {"threads": max(1, local.cores() // slots), **how}
    sweep.make_folder()
    with local.only_launcher(sweep):
        chosen, whole = choose(sweep, kinds), progress.Watch(sweep)
        if not chosen:
            return _told(sweep, whole.look(), kinds)
        if not has_torch():
            raise Refusal("training on this machine needs torch, which is not installed; make setup does it", MACHINE)
        prepare(chosen.runs, how)
        chosen.release()
        spread = f"here, {slots} at a time on {how['threads']} threads each"
        places = "in this process" if cluster == "debug" else spread
        done = _done(_told(sweep, whole.look(), kinds))
        print(f"{sweep.name}: {done}, {len(chosen.places)} to train, {places}", flush=True)
        part = _part(chosen, whole.look())
        with Stop().on(CODES) as stop, progress.view(part, slots) as view:
            if cluster == "debug":
                local.train_inline(part, how, view, stop)
            else:
                local.train_all(part, how, slots, gpus, view, stop)
        statuses = _told(sweep, whole.look(), kinds)
        if any(not ended(statuses[place]) for place in chosen.places):
            raise Refusal(f"stopped with {_done(statuses)}; all is saved, repeat the command", stop())
        return statuses


def _part(chosen: Chosen, statuses: list[Status]) -> Sweep:
    """The sweep without what was not asked for; what is done already is shown as done.

    Args:
        statuses: as folders tell them: workers know nothing of tables, and train what they are given.
    """
    sweep = chosen.sweep
    rest = [place for place, status in enumerate(statuses) if place in chosen.places or ended(status)]
    return sweep if len(rest) == len(sweep.runs) else replace(sweep, runs=tuple(sweep.runs[place] for place in rest))


def _submit(order: _Order, lock: IO[str]) -> None:
    """Submit what the runs of the asked kinds lack, by shape, and say so."""
    sweep = order.sweep
    live = submit.live(sweep)
    if live is None:
        raise Refusal("squeue does not answer; what was submitted goes on; repeat the command", CLUSTER)
    submit.mend(sweep.jobs_folder, live)
    _take_from_gone_jobs(sweep.folders)
    chosen = choose(sweep, order.kinds)
    # Elements that train also probe; where nothing is left to train, some come for the probes alone.
    unprobed = set() if chosen else {str(folder) for folder in probing.left(sweep.folders, sweep.probes)}
    todo = _lacking(order, chosen, unprobed, [] if order.alone else live)
    statuses = _told(sweep, [worker.look(folder) for folder in sweep.folders], order.kinds)
    what = f"{len(unprobed)} to probe" if unprobed else f"{len(chosen.places)} to train"
    print(f"{sweep.name}: {_done(statuses)}, {what} on {order.cluster}", flush=True)
    if todo:
        _submit_elements(order, chosen, todo, live, lock)
    elif chosen or unprobed:
        chosen.release(_launches(live))
        print(f"nothing to submit: {len(live)} elements wait or run already, and take all that is left")
        if order.finish:
            _finish(order, _new_launch(order), order.needs[0], live)


def _lacking(
    order: _Order, chosen: Chosen, unprobed: set[str], live: list[scheduler.Element]
) -> list[tuple[Shape, int]]:
    """Per shape of resources, how many elements the runs to train or probe lack beside the live ones; none of 0."""
    groups: dict[Resources, list[str]] = {}
    for place, folder in enumerate(map(str, order.sweep.folders)):
        if place in chosen.places or folder in unprobed:
            groups.setdefault(order.needs[place], []).append(folder)
    todo = []
    for resources, folders in groups.items():
        shape = Shape(resources, tuple(folders))
        if count := submit.missing(shape, live, order.sweep.jobs_folder, chosen.renewed):
            todo.append((shape, math.ceil(count / probing.BATCH) if unprobed else count))
    return todo


def _submit_elements(
    order: _Order, chosen: Chosen, todo: list[tuple[Shape, int]], live: list[scheduler.Element], lock: IO[str]
) -> None:
    """One array per shape. Whatever SLURM or this machine would refuse is refused before the first one."""
    sweep, launched = order.sweep, _new_launch(order)
    code = launched.code
    for shape, count in todo:
        launched.check(shape, count)
    for node, (why, path) in launched.exclude.items():
        print(f"without {node}, which had a fault ({why}); if that is mended: rm {path}", flush=True)
    _tell_of_gpus(sweep, order.how, [shape.resources for shape, _ in todo])
    prepare(chosen.runs, order.how)
    chosen.release(_launches(live), launched.name if order.alone else None)
    if order.keep_code and (jobs := scheduler.own_jobs()) is not None:
        snapshot.prune(sweep.folder.parent, jobs, code)
    new = []
    for shape, count in todo:
        with claims.inherited(lock):  # an sbatch that outlives a launcher is waited for: what it brings is counted
            made = launched.submit(shape, count)
        few = f" of {count}, as many as one may have" if made.elements < count else ""
        runs = f"{len(shape.folders)} run" + "s" * (len(shape.folders) > 1)
        print(f"job {made.job}: {made.elements} elements{few} for {runs}, each {shape.resources.told()}", flush=True)
        new.append(made.job)
    if order.finish:
        _finish(order, launched, todo[0][0].resources, live, new)


def _new_launch(order: _Order) -> submit.Launch:
    """A launch with the code that its jobs run."""
    code = snapshot.take(order.sweep.folder.parent) if order.keep_code else store.ROOT
    kept = str(code) if order.keep_code else None
    note = {"cluster": order.cluster, "commit": snapshot.label(code), "snapshot": kept, "command": shlex.join(sys.argv)}
    return submit.Launch(order.sweep, local.new_launch_id(), order.how, code, note)


def _launches(live: list[scheduler.Element]) -> set[str]:
    """Launches that have live elements."""
    return {element.comment.partition("/")[0] for element in live}


def _finish(
    order: _Order, launched: submit.Launch, needs: Resources, live: list[scheduler.Element], new: Sequence[str] = ()
) -> None:
    """Submit the job that collects and reports when all others have ended."""
    jobs = [*(element.job.partition("_")[0] for element in live), *new]
    job = launched.finish(Shape(needs, ()), jobs, order.finish)
    print(f"job {job}: {shlex.join(order.finish)}, when these have ended", flush=True)


def _tell_of_gpus(sweep: Sweep, how: dict[str, Any], shapes: list[Resources]) -> None:
    """Say once, at the first launch of a sweep, that the nodes have GPUs and nothing asks for one."""
    if next(sweep.jobs_folder.glob("*/launch.json"), None) or how.get("device") == "cpu":
        return
    for resources in dict.fromkeys(shapes):
        if not resources.gpus_per_node and (there := scheduler.gpus(resources.partition)):
            print(f"warning: nodes here have GPUs ({there}), and these jobs ask for none; --gpus 1 does", flush=True)
            return


def _take_from_gone_jobs(folders: list[Path]) -> None:
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


def _needs(sweep: Sweep, cluster: str, flags: Mapping[str, Any]) -> list[Resources]:
    """The resources of each run. Raises Refusal for what is no resource."""
    seen: dict[tuple, Resources] = {}
    found = []
    for need in sweep.needs or ({},) * len(sweep.runs):
        key = tuple(sorted(need.items()))
        if key not in seen:
            seen[key] = clusters.resources(cluster, need, flags)
        found.append(seen[key])
    return found


def _told(sweep: Sweep, statuses: list[Status], kinds: set[str]) -> list[Status]:
    """Statuses that folders told, with what tables say; not where just those are to be trained."""
    return statuses if "published" in kinds else tables.overlaid(sweep, statuses)


def _done(statuses: list[Status]) -> str:
    """9 of 12 runs done (4 by table)."""
    done = sum(status["state"] == store.DONE for status in statuses)
    return f"{done} of {len(statuses)} runs done{tables.told(statuses)}"
