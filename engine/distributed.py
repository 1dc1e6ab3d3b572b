"""Several processes that train one run: torch.distributed as torchrun or SLURM (through submitit) start it.

A process that is alone is rank 0 of 1, and every function here then costs nothing. Rank 0 owns the run's folder: it
decides, and the others learn what it decided, a Refusal too, so that all ranks leave together.
"""

import datetime
import gc
import logging
import os
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from engine.errors import STOPPED, USAGE, Refusal

# A rank that is dead or hangs is noticed after this; torch's own limits are 10 and 30 minutes.
TIMEOUT_SECONDS = float(os.environ.get("SOFTMLP_DISTRIBUTED_TIMEOUT", "600"))
T = TypeVar("T")


def launched() -> bool:
    """Whether this process was started as one of several: by torchrun, or as a task of a SLURM step."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 or _tasks() > 1


def start(device: str = "auto", launch: str = "") -> None:
    """Join the process group that the environment describes; nothing happens for a process that is alone.

    gloo carries tensors on the CPU, NCCL those on GPUs.

    Args:
        launch: tells the processes of one launch from those of another that meet on one port.

    Raises:
        Refusal: the environment is not whole (USAGE); the job's port is taken (STOPPED), and another start has another.
    """
    if not launched():
        return
    import torch

    if torch.distributed.is_initialized():
        return
    by_slurm = _tasks() > 1 and "TORCHELASTIC_RUN_ID" not in os.environ  # torchrun may itself be a task of SLURM
    if by_slurm:
        _from_slurm()
    missing = [
        key for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ
    ]
    if missing:
        raise Refusal(f"WORLD_SIZE is set, but not {missing[0]}; start several processes with torchrun", USAGE)
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    place = {key: int(os.environ[key.upper()]) for key in ("rank", "world_size")}
    meeting = {"store": _meeting(launch, **place), **place} if by_slurm else {}
    timeout = datetime.timedelta(seconds=TIMEOUT_SECONDS)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout, **meeting)
    if rank():
        logging.getLogger("softmlp").setLevel(logging.WARNING)


def finish(error: BaseException | None = None) -> None:
    """Leave the process group, if there is one, and wait for its threads; nothing happens where another rank is lost.

    A thread of gloo gives tensors back to Python. If it waits for Python's lock when the interpreter ends, the process
    dies of SIGABRT ("terminate called without an active exception"). So nothing may hold the group any more:
    DistributedDataParallel does, from a cycle that only the garbage collector finds.

    Args:
        error: that ends the work; what its frames hold is let go.
    """
    if not _active():
        return
    if error is not None and is_lost(error.__cause__ or error):
        return  # what still waits for the lost one cannot be waited for
    import torch

    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    torch.distributed.destroy_process_group()


def rank() -> int:
    """0 for a process that is alone."""
    if not _active():
        return 0
    import torch

    return torch.distributed.get_rank()


def world() -> int:
    """Number of processes that train together."""
    if not _active():
        return 1
    import torch

    return torch.distributed.get_world_size()


def from_first(decide: Callable[[], T]) -> T:
    """What `decide` gives on rank 0, on every rank; a Refusal there is raised everywhere."""
    if world() == 1:
        return decide()
    import torch

    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = decide()
        except Refusal as refusal:
            answer[1] = refusal
        except BaseException as error:  # the others would wait for the time limit
            answer[1] = Refusal(f"rank 0: {type(error).__name__}: {error}".splitlines()[0], 1)
            torch.distributed.broadcast_object_list(answer)
            raise
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def first_only(work: Callable[[], T]) -> T | None:
    """Do something on rank 0 while the others wait; None there. A Refusal is raised on every rank."""
    kept: list[T] = []
    from_first(lambda: kept.append(work()))
    return kept[0] if kept else None


def agree(value: int) -> int:
    """The largest of all ranks' numbers, so that they stop at the same step."""
    if world() == 1:
        return value
    import torch

    flag = torch.tensor(value)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag)


def mean_(tensor: Any) -> Any:
    """Replace a tensor by its mean over ranks, and return it."""
    if world() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
        tensor /= world()
    return tensor


def sum_(tensor: Any) -> Any:
    """Replace a tensor by its sum over ranks, and return it."""
    if world() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def gathered(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on all of them."""
    if world() == 1:
        return [value]
    import torch

    found: list[Any] = [None] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def share_statistics(model: Any, name: str, device: Any) -> Any:
    """BatchNorm over the whole batch, where several GPUs share one.

    Raises Refusal (USAGE) on the CPU: torch has no such layer there, and statistics of each process's part would make
    the result depend on the number of processes.
    """
    if world() == 1:
        return model
    from torch.nn.modules.batchnorm import _BatchNorm

    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    if device.type == "cpu":
        raise Refusal(
            f"{name} has BatchNorm, which several processes can share on GPUs only; train it with one process"
        )
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group is gone or silent."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "NCCL")
    return world() > 1 and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _meeting(launch: str, rank: int, world_size: int) -> Any:
    """Where the tasks of a SLURM step find each other, and nobody else who came to the same port."""
    import torch

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = {"timeout": datetime.timedelta(seconds=TIMEOUT_SECONDS), "wait_for_workers": False}
    try:
        store = torch.distributed.TCPStore(host, port, world_size, is_master=rank == 0, **wait)
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise Refusal(f"port {port} of {host} is taken; the job begins anew, on another port", STOPPED) from None
    own = [launch, *(os.environ.get(key, "") for key in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"))]
    return torch.distributed.PrefixStore("/".join(own), store)


def _active() -> bool:
    if "RANK" not in os.environ and not _tasks() > 1:
        return False  # so that torch is not imported for a question about a process that is alone
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _tasks() -> int:
    """Tasks of the SLURM step that this process belongs to; a batch script or a salloc shell is none."""
    in_step = os.environ.get("SLURM_STEP_ID", "").isdecimal() and "SLURM_PROCID" in os.environ
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1) if in_step else 1


def _from_slurm() -> None:
    import submitit

    os.environ.pop("MASTER_PORT", None)  # of the shell that submitted the job
    submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    # submitit's port depends on the job alone: a requeued attempt could meet what is left of the one before.
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    os.environ["MASTER_PORT"] = str(20_000 + (int(os.environ["MASTER_PORT"]) + 7919 * restarts) % 40_000)
