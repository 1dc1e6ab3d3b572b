"""train(run, folder): one run from wherever it stands to its end. Resuming is calling it again.

Whatever stops a run, the next call continues it, and the final weights, metrics and CSV are bit for bit those of a run
that was never stopped (same machine type, number of threads and library versions). Nothing random is saved for that:
order and augmentation depend on (seed, epoch, sample), and all else that a step draws on (seed, step).
"""

import contextlib
import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import distributed, models, optim, rng, transfer
from engine.cost.peak import matmul_flops
from engine.cost.profile import count_params, profile
from engine.data import staging
from engine.data.loaders import Loader, make_loaders
from engine.data.normalize import channel_statistics, make_prepare
from engine.errors import CLASSES, MACHINE, OUTSIDE, STOPPED, Refusal, of_machine
from engine.evaluate import evaluate
from engine.fields import dilution, softness
from engine.folder import checkpoint, epochs, predictions, store
from engine.folder.environment import environment
from engine.folder.lease import Lease, node, own
from engine.folder.status import Metrics, Status, best_of, log_to
from engine.folder.trackers import Trackers
from engine.pruning import masks
from engine.run import BEST, LAST, How, Run
from engine.step import State, Step, precision

# At the end of an epoch a checkpoint is skipped if the last one is younger than this: so much is lost at most.
CHECKPOINT_SECONDS = 10.0
log = logging.getLogger("softmlp")


def train(
    run: Run,
    folder: Path,
    how: How | None = None,
    stop: Callable[[], int] = lambda: 0,
    tell: Callable[[dict[str, Any]], None] = lambda fields: None,
    launch: str = "",
) -> None:
    """Train a run to its end in its folder; return at once if it is done.

    Where several processes train it together (engine/distributed.py), all of them call this; the first one writes.

    Args:
        stop: asked at each step; an exit code other than 0 means: save, and leave by a Refusal of that code.
        tell: called about once a second with the fields of status.json.
        launch: noted with the attempt (engine/folder/lease.py).

    Raises:
        Refusal: what the user can mend, with its exit code (engine/errors.py). status.json then says the same.
    """
    with contextlib.ExitStack() as stack:
        lease = distributed.first_only(functools.partial(_begin, stack, run, folder, launch, stop))
        status = Status(folder, lease, tell)
        if distributed.from_first(lambda: status.done):
            if lease:
                checkpoint.clear(folder)
            return
        try:
            how = how or How()
            trackers = stack.enter_context(contextlib.closing(Trackers(run, folder, how)))
            _train(run, folder, how, stop, status, lease, trackers)
        except BaseException as error:
            ending = _explained(run, error)
            _record_end(status, lease, ending)
            if ending is error:
                raise
            raise ending from error


def _begin(stack: contextlib.ExitStack, run: Run, folder: Path, launch: str, stop: Callable[[], int]) -> Lease:
    """The run's folder and the right to write into it, until the stack is closed."""
    store.make_folder(run, folder)
    # A worker of a launch has looked, and found nobody: whoever has it now was faster, and other runs wait.
    lease = stack.enter_context(own(folder, launch, None if launch else stop))
    stack.enter_context(log_to(folder))
    return lease


def _train(
    run: Run, folder: Path, how: How, stop: Callable[[], int], status: Status, lease: Lease | None, trackers: Trackers
) -> None:
    # --- machine -----------------------------------------------------------------------------------------------------
    device, world = models.pick_device(how), distributed.world()
    before = distributed.from_first(lambda: store.read_json(folder / "env.json"))
    threads = _set_threads(run, how, before)
    initial = transfer.check(run, folder)

    # --- data --------------------------------------------------------------------------------------------------------
    train_loader, val_loader, facts = make_loaders(run, staging.staged(run, how))
    val_part = val_loader.part(how.val_samples) if how.val_samples else None
    num_classes, in_chans = facts["num_classes"], len(channel_statistics(run, facts)[0])
    models.check_batch(run, num_classes, in_chans)
    prepare = make_prepare(run, facts, device)
    steps_per_epoch = len(train_loader) // run.grad_accum_steps
    if not steps_per_epoch:
        raise Refusal(
            f"grad_accum_steps {run.grad_accum_steps} is more than the {len(train_loader)} batches of an epoch"
        )
    env = {**environment(), "threads": threads, "device": str(device), "world_size": world, **initial}
    env |= {"data_file": facts["file"], "data_sha256": facts["sha256"]}
    kept = epochs.kept(run, how, before)
    env |= {epochs.KEPT: kept} if kept else {}
    _compare_environment(before, env)
    if lease and not before:
        lease.check()
        store.write_json(folder / "env.json", env, named=False)

    # --- model, optimizer, schedule ----------------------------------------------------------------------------------
    rng.seed_everything(run.seed, "init")
    model = models.create(run, num_classes, in_chans).to(device)
    saved = distributed.from_first(lambda: checkpoint.latest(folder))
    fresh = copy.deepcopy(model.state_dict()) if run.prune_rewind and saved is None else None
    if run.initial_checkpoint and saved is None:
        transfer.load(run, model, num_classes, in_chans)
    if saved is None:
        begin = functools.partial(masks.start, run, model, functools.partial(train_loader.epoch, 0), prepare)
        gone = distributed.from_first(begin)
        if fresh is not None:
            model.load_state_dict(fresh)
    else:
        gone = saved.get("masks")
    if run.mode == "linear":
        optim.freeze_body(model)
    trainable = count_params(model, trainable=True)
    if lease and "flops" not in store.read_json(folder / "profile.json"):
        shape = {"img_size": run.img_size, "in_chans": in_chans, "num_classes": num_classes}
        costs = profile(run.model, **shape, **run.final_kwargs)
        costs |= {"trainable_params": trainable} if run.mode == "linear" else {}
        store.write_json(folder / "profile.json", costs, named=False)
    if how.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = distributed.share_statistics(model, run.rung, device)
    state = State(run, model, device, gone)
    schedule = optim.make_schedule(run, state.optimizer, steps_per_epoch)
    both = (model, state.ema and state.ema.module)
    schedule = dilution.with_dilution(run, schedule, steps_per_epoch, *both)
    schedule = softness.with_annealing(run, schedule, steps_per_epoch, *both)

    # --- resume ------------------------------------------------------------------------------------------------------
    if saved is not None:
        state.load_state_dict(saved)
    elif lease and 0 in kept:
        _export(epochs.path_of(folder, 0), run, state.judged, {"epoch": -1, "eval_top1": None}, facts)
    # A run that resumes at the end of an epoch tells the rate of the last step taken.
    schedule.step_update(max(state.step - 1, 0))
    prepare_step = make_prepare(run, facts, device, training=True)
    distil_steps = dilution.distil_steps(run, steps_per_epoch)
    taught = models.create_teacher(run, num_classes, in_chans) if state.step < distil_steps else None
    step = Step(run, state, schedule, prepare_step, num_classes, compiled=how.torchcompile, taught=taught)
    step.distil_steps = distil_steps
    step.micro_batches = before.get("micro_batches", 1)
    metrics = Metrics(folder, state.step, len(state.history), lease)
    if lease:
        trackers.open(len(state.history))
        status.train_flops_per_image = 3 * store.read_json(folder / "profile.json")["flops"]
        # Else the FLOPs of a step change, or are not those of the end.
        if run.final_kwargs == run.model_kwargs and run.distil_epochs is None:
            status.peak_flops = matmul_flops(device.type, precision(run), threads) * world
    if device.type == "cuda":  # the peak is the run's, not that of the one before it here or of matmul_flops
        torch.cuda.reset_peak_memory_stats()
    status.first_step, status.steps, status.epochs = state.step, run.epochs * steps_per_epoch, run.epochs
    status.best_from = softness.best_from(run)
    log.info(
        "%s: %s%s parameters, %s at %s px, %d training and %d validation images, %d epochs of %d steps, %s, %s%s",
        run.name, f"{trainable:,} of " if run.mode == "linear" else "", f"{count_params(model):,}",
        run.dataset, run.pixels, train_loader.num_samples * world,
        val_loader.total, run.epochs, steps_per_epoch, device,
        f"{world} processes of {threads} threads" if world > 1 else f"{threads} threads",
        f", from step {state.step}" if state.step else "",
    )  # fmt: skip
    status.update(state.step, state.history)

    # --- epochs ------------------------------------------------------------------------------------------------------
    while len(state.history) < run.epochs:
        epoch = len(state.history)
        first_batch = (state.step - epoch * steps_per_epoch) * run.grad_accum_steps
        batches = status.timed(train_loader.epoch(epoch, first_batch))
        models.set_train(run, model)
        while state.step < (epoch + 1) * steps_per_epoch:
            parts = step.micro_batches
            step(batches)
            if lease and step.micro_batches != parts:
                lease.check()
                noted = store.read_json(folder / "env.json") | {"micro_batches": step.micro_batches}
                store.write_json(folder / "env.json", noted, named=False)
            if state.step % how.log_interval == 0:
                mean = state.finite(state.settle().item() * run.grad_accum_steps)
                metrics.append(step=state.step, epoch=epoch, loss=mean, lr=state.lr)
            if code := distributed.agree(stop()):
                batches.close()
                state.save(folder, lease, how.checkpoint_hist)
                where = f"step {state.step} of {status.steps}"
                raise Refusal(f"{run.name} stopped at {where}, saved; repeat the command to go on", code)
            if how.checkpoint_interval and state.step % how.checkpoint_interval == 0:
                state.save(folder, lease, how.checkpoint_hist)
            status.update(state.step, state.history)
        batches.close()

        alive, seen = functools.partial(status.update, state.step, state.history), predictions.Seen()
        whole = (epoch + 1) % how.val_interval == 0 or epoch + 1 == run.epochs
        loader = val_loader if whole else val_part
        result = evaluate(state.judged, loader, prepare, step.autocast, alive, seen) if loader else None
        row = _row(state, steps_per_epoch, result if whole else None)
        state.history.append(row)
        state.loss_sum.zero_()
        held = models.held(model, step.penalty)
        told = _told(result, loader) + "".join(f"  {key} {_short(value)}" for key, value in held.items())
        log.info("epoch %d/%d  train_loss %.4f%s", epoch + 1, run.epochs, row["train_loss"], told)
        if held:
            metrics.append(step=state.step, epoch=epoch, **held)
        if result and not whole:
            sample = {"sample_loss": round(result["loss"], 6), "sample_top1": round(result["top1"], 4)}
            metrics.append(step=state.step, epoch=epoch, val_samples=loader.total, **sample)
        if lease:
            lease.check()
            trackers.write(row)
            _tell(folder, state, durable=False)
            if best_of(state.history, status.best_from) is row:
                _export(folder / BEST, run, state.judged, row, facts, durable=False)
            if len(state.history) in kept:
                _export(epochs.path_of(folder, len(state.history)), run, state.judged, row, facts)
        # Before the checkpoint: a run that resumes after its last evaluation does not evaluate again.
        if len(state.history) == run.epochs:
            _predicted(folder, seen, num_classes, row, lease)
        if distributed.from_first(lambda: how.checkpoint_interval or state.age() >= CHECKPOINT_SECONDS):
            state.save(folder, lease, how.checkpoint_hist)
        status.update(state.step, state.history)

    # --- the end: the weights first, then the word that they are there, then away with what only resuming needs -------
    if lease:
        lease.check()
        checkpoint.settle_history(folder)
        _tell(folder, state, durable=True)
        _export(folder / LAST, run, state.judged, state.history[-1], facts)
        status.final(state.step, state.history)
        checkpoint.clear(folder)


def _set_threads(run: Run, how: How, before: dict[str, Any]) -> int:
    """Give torch the number of threads that the run began with, its env.json says, and return it."""
    threads = before.get("threads") or how.threads or torch.get_num_threads()
    if how.threads and how.threads != threads:
        log.warning("%s began with %d threads and keeps them: the number changes the last bits", run.name, threads)
    torch.set_num_threads(threads)
    return threads


def _compare_environment(before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in ("torch", "timm", "numpy", "processor", "device", "world_size", "commit", "data_sha256"):
        if before and before.get(key, now[key]) != now[key]:
            log.warning("%s was %s when this run began, is %s now: bit-exact no more", key, before.get(key), now[key])


def _row(state: State, steps: int, result: dict[str, float] | None) -> dict[str, Any]:
    """The row of summary.csv for the epoch, of so many steps, that just ended; None: not evaluated on all images."""
    state.settle()
    return {
        "epoch": len(state.history),
        "train_loss": round(state.finite(state.loss_sum.item()) / steps, 6),
        "eval_loss": round(result["loss"], 6) if result else None,
        "eval_top1": round(result["top1"], 4) if result else None,
        "eval_top5": round(result["top5"], 4) if result else None,
        "lr": float(f"{state.lr:.6g}"),
    }


def _told(result: dict[str, float] | None, loader: Loader | None) -> str:
    """What an evaluation found, for the log: on how many images, where they were not all."""
    if not result:
        return ""
    part = "" if loader.total == loader.whole else f" on {loader.total} images of {loader.whole}"
    return f"  eval_loss {result['loss']:.4f}  acc1 {result['top1']:.2f}{part}"


def _short(value: float | list[float]) -> str:
    """A number, or one per layer, for the log."""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(f"{each:.3f}" for each in value)


def _tell(folder: Path, state: State, durable: bool) -> None:
    """summary.csv, all of it anew."""
    store.write_bytes(folder / "summary.csv", store.csv_text(state.history).encode(), durable, named=False)


def _export(
    path: Path, run: Run, model: nn.Module, row: dict[str, Any], facts: dict[str, Any], durable: bool = True
) -> None:
    """Weights as timm's validate.py and ours load them, with what is needed to rebuild the model."""
    weights: dict[str, Tensor] = {name: tensor.cpu() for name, tensor in models.final_state(model).items()}
    record = {"arch": run.model, "args": run.ended.record(), "num_classes": facts["num_classes"]}
    checkpoint.write(
        path, {**record, "epoch": row["epoch"], "metric": row["eval_top1"], "state_dict": weights}, durable
    )


def _predicted(
    folder: Path, seen: predictions.Seen, num_classes: int, row: dict[str, Any], lease: Lease | None
) -> None:
    """Write the predictions of record: all processes call this, and the one with the lease writes."""
    found = seen.all()
    assert found.are_of(row["eval_top1"]), f"predictions of accuracy {found.acc1}, evaluated as {row['eval_top1']}"
    if lease:
        predictions.write(folder, found, num_classes)


def _explained(run: Run, error: BaseException) -> BaseException:
    """What another process or the machine did to the run, as a Refusal; any other error stays what it is."""
    if isinstance(error, Refusal | KeyboardInterrupt):
        return error
    log.exception("%s failed", run.name)
    if distributed.is_lost(error):
        return Refusal(f"{run.name}: another of its processes died or hangs ({_line(error)}); repeat", STOPPED)
    if of_machine(error):
        return Refusal(f"{run.name}: fault of {node()}: {_line(error)}; what was saved is kept, repeat", MACHINE)
    return error


def _record_end(status: Status, lease: Lease | None, error: BaseException) -> None:
    """The last word of an attempt that an error ended."""
    state, kind, line, code = store.FAILED, "unknown", _line(error), 1
    if isinstance(error, Refusal):
        state = store.STOPPED if error.code >= STOPPED or error.code in OUTSIDE else store.FAILED
        kind, line, code = CLASSES.get(error.code, "unknown"), str(error), error.code
        if lease and code == MACHINE:
            lease.record["fault"] = True
    elif isinstance(error, KeyboardInterrupt):
        state, kind, line, code = store.STOPPED, "interrupted", "interrupted", 130
    elif isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        kind = "oom"
    try:
        status.end(state, error_class=kind, error=line, exit_code=code)
    except Refusal as refusal:  # a full disk, or a later attempt that has the word now
        log.warning("the end of this attempt is not noted: %s", refusal)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
