"""The model of a run and the device it stands on: built, put into the mode it trains in, or refused in one line."""

import ctypes
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import archs
from archs.attention.diluted import Diluted
from archs.mixing.dial import Mixing as Dial
from engine import distributed, optim, transfer
from engine.data.sets import lookup
from engine.errors import CHECKPOINT, MACHINE, USAGE, Refusal
from engine.fields import dilution
from engine.fields.sizes import pair
from engine.folder import store
from engine.folder.lease import node
from engine.pruning import masks
from engine.run import How, Run

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
BEFORE_2_35 = 2**25  # bytes; the most that older ones take as a threshold of mmap
KEPT = 2**31 - 1  # bytes; the most that mallopt takes
HUGE_PAGES = 2**30  # bytes, untouched until they are used
HUGE_PAGE = 2**21
MADV_HUGEPAGE = 14


def pick_device(how: How) -> torch.device:
    """The device asked for, told to compute float32 in float32.

    Raises Refusal where it is not there: in a job of SLURM that is the machine's fault.
    """
    if how.device == "cuda" and not torch.cuda.is_available():
        in_job = "SLURM_JOB_ID" in os.environ  # that got a GPU which does not work
        line = f"--device cuda, but torch sees no GPU on {node()}; leave --device out to use the CPU"
        raise Refusal(
            f"a GPU was asked for, but torch sees none on {node()}" if in_job else line, MACHINE if in_job else USAGE
        )
    # For cuDNN's convolutions torch allows TF32, float32 with 10 bits of mantissa, unless told otherwise.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    cuda = how.device == "cuda" or (how.device == "auto" and torch.cuda.is_available())
    _repeat_exactly(cuda and how.deterministic)
    if not cuda:
        keep_memory()
    return torch.device("cuda" if cuda else "cpu")


def _repeat_exactly(wanted: bool) -> None:
    """Only algorithms that give the same bits each time, by torch's notes on reproducibility; any other is its error.

    For this process, from before its first matrix product on a GPU: cuBLAS reads its setting once. Memory that nothing
    was written to stays as it is, as all of ours is written before it is read.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = wanted
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(wanted)


def keep_memory() -> None:
    """Let malloc keep what torch frees, for the next step, and ask for huge pages under it.

    By default glibc returns every large activation to the kernel, which maps it anew and fills it with zeros, 4 kB at a
    time, in the next step: a tenth of the time of a small model (results/bench/engine.csv, heap). For this process,
    where its C library is glibc; numbers stay as they are. Again for each run, as `return_memory` undoes a part.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "madvise"):
        return
    libc.mallopt(MALLOC_MMAP_THRESHOLD, HUGE_PAGES) or libc.mallopt(MALLOC_MMAP_THRESHOLD, BEFORE_2_35)
    libc.mallopt(MALLOC_TRIM_THRESHOLD, KEPT)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    size = HUGE_PAGES - HUGE_PAGE  # below the threshold: a part of the heap, which later blocks are cut from
    if block := libc.malloc(size):
        begin = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(begin, (block + size - begin) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(block)


def return_memory() -> None:
    """Give what malloc kept of a finished run back to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def create(run: Run, num_classes: int, in_chans: int) -> nn.Module:
    """The run's model for its data. Raises Refusal for what only building it can find out."""
    given = {**run.model_kwargs, **({"drop_path": run.drop_path} if run.drop_path else {})}
    try:
        model = archs.create(run.model, img_size=run.img_size, num_classes=num_classes, in_chans=in_chans, **given)
        if run.dilute_layers is not None:
            model.dilute(dilution.layers(run.dilute_layers))
        return model
    except (ValueError, TypeError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise Refusal(line if run.model in line else f"{run.rung}: {line}", USAGE) from None


def create_teacher(run: Run, num_classes: int, in_chans: int) -> tuple[nn.Module, list[int]]:
    """The model that a run's initial checkpoint is of, with its weights, and the layers whose mixing only it has.

    Raises Refusal (CHECKPOINT): the file cannot be read or does not fit, or has the mixing of none of those layers.
    """
    path = transfer.file_of(run.initial_checkpoint)
    said = (transfer.read(path).get("args") or {}).get("model_kwargs") or {}
    own = {dilution.END: [], **{key: said[key] for key in dilution.GONE if key in said}}
    whole = run.but(distil_epochs=None, model_kwargs={**_without(run.model_kwargs, dilution.GONE), **own})
    lost = {**archs.defaults(run.model), **run.model_kwargs}[dilution.END]
    layers = sorted({*lost} - {*own[dilution.END]})
    if not layers:
        raise Refusal(f"{path} has no mixing in layers {lost} either; leave out distil_epochs", CHECKPOINT)
    model = create(whole, num_classes, in_chans)
    transfer.load(whole, model, num_classes, in_chans)
    return model, layers


def _without(fields: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


def final_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the model which a run ends with has: without attention that was diluted, and of a dial at 1
    without what stood beside its kernel."""
    gone = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Diluted))
    gone += tuple(f"{name}.rest" for name, dial in _dials(model) if dial.gate is None and dial.strictness == 1)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(gone)}


def held(model: nn.Module, penalty: optim.Penalty | None) -> dict[str, float | list[float]]:
    """How strictly the model is held, to be told: its penalty, and the strictness of its dials, layer by layer."""
    found: dict[str, float | list[float]] = {} if penalty is None else {"penalty": penalty.value().item()}
    if dials := _dials(model):
        found["strictness"] = [round(1 - float(dial.softness().detach()), 6) for _, dial in dials]
    return found


def _dials(model: nn.Module) -> list[tuple[str, Dial]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Dial)]


def preflight(run: Run, folder: Path | None = None) -> None:
    """Build the model without memory, to refuse what cannot be built before data are written or a job is queued.

    Args:
        folder: of the run, where it is not the usual one; a run that began needs its initial checkpoint no more.
    """
    transfer.check(run, folder or store.folder_of(run))
    entry = lookup(run.dataset)
    num_classes, in_chans = (entry.num_classes, entry.in_chans) if entry else (1000, 3)
    with torch.device("meta"):
        model = create(run, num_classes, in_chans)
        masks.check(run, model)
        optim.make_penalty(run, model)
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
            model(torch.empty(1, in_chans, *pair(run.img_size)))
        except NotImplementedError:  # an operation without a meta kernel: the first step will tell
            return
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            name, module = entered[-1]
            raise Refusal(
                f"{run.rung} at {run.pixels} px cannot train on batch_size 1: its layer {name} "
                f"({type(module).__name__}) sees one value per channel; give a batch_size of 2 or more"
            ) from None


def set_train(run: Run, model: nn.Module) -> None:
    """Training mode; of a linear probe for the head alone, so that the body's BatchNorm statistics stay."""
    model.train(run.mode != "linear")
    optim.head_of(model).train()
