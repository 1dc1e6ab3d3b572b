"""train(run, folder): one run from wherever it stands to its end. Resuming is calling it again.

Whatever stops a run, the next call continues it, and the final weights, metrics and CSV are bit for bit those of a run
that was never stopped (same machine type, number of threads and library versions). Nothing random is saved for that:
order and augmentation depend on (seed, epoch, sample), and all else that a step draws on (seed, step).
"""

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import archs
from engine import distributed, optim, rng, transfer
from engine.cost.peak import matmul_flops
from engine.cost.profile import count_params, profile
from engine.data.loaders import channel_statistics, make_loaders, make_prepare
from engine.data.sets import lookup
from engine.errors import CLASSES, DIVERGED, MACHINE, OUTSIDE, STOPPED, USAGE, Refusal
from engine.evaluate import evaluate
from engine.faults import of_machine
from engine.folder import checkpoint, store
from engine.folder.environment import environment
from engine.folder.lease import Lease, node, own
from engine.folder.status import Metrics, Status, log_to
from engine.folder.trackers import Trackers
from engine.run import How, Run

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

        def begin() -> Lease:
            store.make_folder(run, folder)
            lease = stack.enter_context(own(folder, launch, stop))
            stack.enter_context(log_to(folder))
            return lease

        lease = distributed.first_only(begin)
        status = Status(folder, lease, tell)
        if distributed.from_first(lambda: status.done):
            if lease:
                checkpoint.clear(folder)
            return
        try:
            how = how or How()
            trackers = stack.enter_context(contextlib.closing(Trackers(run, folder, how)))
            _train(run, folder, how, stop, status, lease, trackers)
        except Refusal as refusal:
            if lease and refusal.code == MACHINE:
                lease.record["fault"] = True
            state = store.STOPPED if refusal.code >= STOPPED or refusal.code in OUTSIDE else store.FAILED
            _record_end(status, state, CLASSES.get(refusal.code, "unknown"), str(refusal), refusal.code)
            raise
        except KeyboardInterrupt:
            _record_end(status, store.STOPPED, "interrupted", "interrupted", 130)
            raise
        except BaseException as error:
            log.exception("%s failed", run.name)
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            if distributed.is_lost(error):
                refusal = Refusal(f"{run.name}: another of its processes died or hangs ({line}); repeat", STOPPED)
                _record_end(status, store.STOPPED, CLASSES[STOPPED], str(refusal), STOPPED)
                raise refusal from error
            if of_machine(error):
                if lease:
                    lease.record["fault"] = True
                refusal = Refusal(f"{run.name}: fault of {node()}: {line}; what was saved is kept, repeat", MACHINE)
                _record_end(status, store.STOPPED, CLASSES[MACHINE], str(refusal), MACHINE)
                raise refusal from error
            memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
            _record_end(status, store.FAILED, "oom" if memory else "unknown", line, 1)
            raise


def _train(
    run: Run, folder: Path, how: How, stop: Callable[[], int], status: Status, lease: Lease | None, trackers: Trackers
) -> None:
    # --- machine -----------------------------------------------------------------------------------------------------
    device = pick_device(how)
    before = distributed.from_first(lambda: store.read_json(folder / "env.json"))
    threads = before.get("threads") or how.threads or torch.get_num_threads()
    if how.threads and how.threads != threads:
        log.warning("%s began with %d threads and keeps them: the number changes the last bits", run.name, threads)
    torch.set_num_threads(threads)
    world = distributed.world()
    initial = transfer.check(run, folder)

    # --- data, model, optimizer --------------------------------------------------------------------------------------
    train_loader, val_loader, facts = make_loaders(run, how)
    in_chans = len(channel_statistics(run, facts)[0])
    check_batch(run, facts["num_classes"], in_chans)
    steps_per_epoch = len(train_loader) // run.grad_accum_steps
    if not steps_per_epoch:
        raise Refusal(
            f"grad_accum_steps {run.grad_accum_steps} is more than the {len(train_loader)} batches of an epoch"
        )
    steps = run.epochs * steps_per_epoch
    prepare = make_prepare(run, facts, device)
    env = {**environment(), "threads": threads, "device": str(device), "world_size": world, **initial}
    env |= {"data_file": facts["file"], "data_sha256": facts["sha256"]}
    _compare_environment(before, env)
    if lease and not before:
        store.write_json(folder / "env.json", env)

    rng.seed_everything(run.seed, "init")
    model = create(run, facts["num_classes"], in_chans).to(device)
    state = distributed.from_first(lambda: checkpoint.latest(folder))
    if run.initial_checkpoint and state is None:
        transfer.load(run, model, facts["num_classes"], in_chans)
    if lease and "flops" not in store.read_json(folder / "profile.json"):
        shape = {"img_size": run.img_size, "in_chans": in_chans, "num_classes": facts["num_classes"]}
        store.write_json(folder / "profile.json", profile(run.model, **shape, **run.model_kwargs))
    if run.mode == "linear":
        optim.freeze_body(model)
    if how.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = distributed.share_statistics(model, run.rung, device)
    optimizer = optim.make_optimizer(run, model)
    schedule = optim.make_schedule(run, optimizer, steps_per_epoch)
    loss_of, mix = optim.make_loss(run), optim.make_mix(run, facts["num_classes"])
    ema = ModelEmaV3(model, decay=run.model_ema_decay, use_warmup=run.model_ema_warmup) if run.model_ema else None
    judged = ema.module if ema else model
    dtype = getattr(torch, run.amp_dtype) if run.amp else torch.float32
    autocast = functools.partial(torch.autocast, device.type, dtype, enabled=run.amp)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # --- resume ------------------------------------------------------------------------------------------------------
    step, history = 0, []
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.module.load_state_dict(state["ema"])
        scaler.load_state_dict(state["scaler"])
        step, history = state["step"], state["history"]
        loss_sum += state["loss_sum"]
    schedule.step_update(max(step - 1, 0))
    lr = optimizer.param_groups[0]["lr"]  # of the last step taken, for a run that resumes at the end of an epoch
    forward = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    forward = torch.compile(forward) if how.torchcompile else forward
    metrics = Metrics(folder, step, lease)
    if lease:
        trackers.open(len(history))
    status.first_step = step
    saved = time.monotonic()

    def finite(value: float) -> float:
        if not math.isfinite(value):
            where = f"at epoch {len(history) + 1} step {step} of {run.name} (lr {lr:.3g})"
            raise Refusal(f"loss became {value} {where}; try --clip-grad 1 or a lower --lr", DIVERGED)
        return value

    def save() -> None:
        nonlocal saved
        finite(loss_sum.item())
        state = {"step": step, "loss_sum": loss_sum.item(), "history": history, "model": model.state_dict()}
        state |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        state |= {"ema": ema.module.state_dict() if ema else None}

        def publish() -> None:
            lease.check()
            checkpoint.save(folder, state)

        distributed.first_only(publish)
        saved = time.monotonic()

    def alive() -> None:
        status.update(step, steps, run.epochs, history)

    if lease:
        status.train_flops_per_image = 3 * store.read_json(folder / "profile.json")["flops"]
        status.peak_flops = matmul_flops(device.type, dtype, threads) * world
    log.info(
        "%s: %s parameters, %s at %d px, %d training and %d validation images, %d epochs of %d steps, %s, %s%s",
        run.name, f"{count_params(model):,}", run.dataset, run.img_size, train_loader.num_samples * world,
        val_loader.total, run.epochs, steps_per_epoch, device,
        f"{world} processes of {threads} threads" if world > 1 else f"{threads} threads",
        f", from step {step}" if step else "",
    )  # fmt: skip
    alive()

    # --- epochs ------------------------------------------------------------------------------------------------------
    while len(history) < run.epochs:
        epoch = len(history)
        first = (step - epoch * steps_per_epoch) * run.grad_accum_steps
        batches = status.timed(train_loader.epoch(epoch, first))
        set_train(run, model)
        for index in range(first, steps_per_epoch * run.grad_accum_steps):
            images, labels = next(batches)
            part = index % run.grad_accum_steps
            last = part + 1 == run.grad_accum_steps
            rng.seed_everything(run.seed, "step", step, part)
            if part == 0:
                schedule.step_update(step)
                lr = optimizer.param_groups[0]["lr"]
            x_BCHW, labels = prepare(images), labels.to(device, copy=True)
            if mix:
                x_BCHW, labels = mix(x_BCHW, labels)
            if world > 1:  # mixing is the same everywhere; what the model draws is not
                rng.seed_everything(run.seed, "rank", step, part, distributed.rank())
            with contextlib.nullcontext() if last or world == 1 else forward.no_sync():
                with autocast():
                    logits = forward(x_BCHW)
                # Outside autocast: under it a CPU takes the logarithm and the mean in bfloat16.
                loss = loss_of(logits.float(), labels) / run.grad_accum_steps
                if part == 0:  # not before the forward pass, which would take the memory that the gradients want again
                    optimizer.zero_grad()
                scaler.scale(loss).backward()
            loss = distributed.mean_(loss.detach())
            loss_sum += loss
            if not last:
                continue
            if device.type == "cpu":  # on a GPU looking at the loss would wait for it
                finite(loss.item())
            if run.clip_grad:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            step += 1
            if ema:
                ema.update(model, step)
            if step % how.log_interval == 0:
                metrics.append(step=step, epoch=epoch, loss=finite(loss.item() * run.grad_accum_steps), lr=lr)
            if code := distributed.agree(stop()):
                batches.close()
                save()
                raise Refusal(f"{run.name} stopped at step {step} of {steps}, saved; repeat the command to go on", code)
            if how.checkpoint_interval and step % how.checkpoint_interval == 0:
                save()
            alive()
        batches.close()

        result = evaluate(judged, val_loader, prepare, autocast, alive)
        history.append(
            {
                "epoch": epoch,
                "train_loss": round(finite(loss_sum.item()) / steps_per_epoch, 6),
                "eval_loss": round(result["loss"], 6),
                "eval_top1": round(result["top1"], 4),
                "eval_top5": round(result["top5"], 4),
                "lr": float(f"{lr:.6g}"),
            }
        )
        loss_sum.zero_()
        log.info(
            "epoch %d/%d  train_loss %.4f  eval_loss %.4f  acc1 %.2f", epoch + 1, run.epochs,
            history[-1]["train_loss"], history[-1]["eval_loss"], history[-1]["eval_top1"],
        )  # fmt: skip
        if lease:
            lease.check()
            trackers.write(history[-1])
            store.write_bytes(folder / "summary.csv", store.csv_text(history).encode())
            if all(history[-1]["eval_top1"] > row["eval_top1"] for row in history[:-1]):
                _export(folder / "model_best.pth.tar", run, judged, history[-1], facts)
        if distributed.from_first(lambda: how.checkpoint_interval or time.monotonic() - saved >= CHECKPOINT_SECONDS):
            save()
        alive()

    # --- the end: the weights first, then the word that they are there, then away with what only resuming needs -------
    if lease:
        lease.check()
        _export(folder / "last.pth.tar", run, judged, history[-1], facts)
        status.final(step, steps, run.epochs, history)
        checkpoint.clear(folder)


def set_train(run: Run, model: nn.Module) -> None:
    """Training mode; of a linear probe for the head alone, so that the body's BatchNorm statistics stay."""
    model.train(run.mode != "linear")
    optim.head_of(model).train()


def pick_device(how: How) -> torch.device:
    """The device asked for. Raises Refusal where it is not there: in a job of SLURM that is the machine's fault."""
    if how.device == "cuda" and not torch.cuda.is_available():
        in_job = "SLURM_JOB_ID" in os.environ  # that got a GPU which does not work
        line = f"--device cuda, but torch sees no GPU on {node()}; leave --device out to use the CPU"
        raise Refusal(
            f"a GPU was asked for, but torch sees none on {node()}" if in_job else line, MACHINE if in_job else USAGE
        )
    cuda = how.device == "cuda" or (how.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def create(run: Run, num_classes: int, in_chans: int) -> nn.Module:
    """The run's model for its data. Raises Refusal for what only building it can find out."""
    given = {**run.model_kwargs, **({"drop_path": run.drop_path} if run.drop_path else {})}
    try:
        return archs.create(run.model, img_size=run.img_size, num_classes=num_classes, in_chans=in_chans, **given)
    except (ValueError, TypeError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise Refusal(line if run.model in line else f"{run.rung}: {line}", USAGE) from None


def preflight(run: Run, folder: Path | None = None) -> None:
    """Build the model without memory, to refuse what cannot be built before data are written or a job is queued.

    Args:
        folder: of the run, where it is not the usual one; a run that began needs its initial checkpoint no more.
    """
    transfer.check(run, folder or store.folder_of(run))
    entry = lookup(run.dataset)
    num_classes, in_chans = (entry.num_classes, entry.in_chans) if entry else (1000, 3)
    with torch.device("meta"):
        create(run, num_classes, in_chans)
    check_batch(run, num_classes, in_chans)


def check_batch(run: Run, num_classes: int, in_chans: int) -> None:
    """Refuse a batch whose images mixup cannot pair in each process, or whose statistics BatchNorm cannot take.

    The batches of an epoch are all of one size, so that no last one is smaller. One image is tried on the model itself,
    without memory: whether a layer then sees a single value per channel depends on the size of its map.
    """
    world = distributed.world()
    if (run.mixup or run.cutmix) and run.batch_size // world % 2:
        share = f" for each of {world} processes, it is {run.batch_size // world}" if world > 1 else ""
        raise Refusal(f"mixup and cutmix pair the images of a batch: batch_size {run.batch_size} must be even{share}")
    if run.batch_size > 1:
        return
    entered: list[tuple[str, nn.Module]] = []
    with torch.device("meta"):
        model = create(run, num_classes, in_chans)
        set_train(run, model)
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda module, given, name=name: entered.append((name, module)))
        try:
            model(torch.empty(1, in_chans, run.img_size, run.img_size))
        except NotImplementedError:  # an operation without a meta kernel: the first step will tell
            return
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            name, module = entered[-1]
            raise Refusal(
                f"{run.rung} at {run.img_size} px cannot train on batch_size 1: its layer {name} "
                f"({type(module).__name__}) sees one value per channel; give a batch_size of 2 or more"
            ) from None


def _export(path: Path, run: Run, model: nn.Module, row: dict[str, Any], facts: dict[str, Any]) -> None:
    """Weights as timm's validate.py and ours load them, with what is needed to rebuild the model."""
    weights: dict[str, Tensor] = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    record = {"arch": run.model, "args": run.record(), "num_classes": facts["num_classes"]}
    checkpoint.write(path, {**record, "epoch": row["epoch"], "metric": row["eval_top1"], "state_dict": weights})


def _compare_environment(before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in ("torch", "timm", "numpy", "processor", "device", "world_size", "commit", "data_sha256"):
        if before and before.get(key, now[key]) != now[key]:
            log.warning("%s was %s when this run began, is %s now: bit-exact no more", key, before.get(key), now[key])


def _record_end(status: Status, state: str, error_class: str, error: str, code: int) -> None:
    try:
        status.end(state, error_class=error_class, error=error, exit_code=code)
    except Refusal as refusal:  # a full disk, or a later attempt that has the word now
        log.warning("the end of this attempt is not noted: %s", refusal)
