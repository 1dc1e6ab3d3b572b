"""What a sweep would find here: SLURM and its limits, GPUs, FFCV, disk; and what to mend."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.folder import locks, store
from engine.run import DATA_DIR
from slurm.cluster import clusters, scheduler
from slurm.queue import local

LOW_DISK_GB = 5.0
IMPORT_SECONDS = 120.0
SYSTEM = "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev"


class Finding(NamedTuple):
    """One line: what, what was found, and what to do about it (empty: nothing)."""

    what: str
    found: str
    fix: str = ""


def findings() -> Iterator[Finding]:
    """Everything, cheapest first."""
    yield Finding("Python", f"{sys.version.split()[0]}, {sys.executable}")
    yield Finding("machine", f"{local.cores()} cores, {_memory_gb():.0f} GB of memory, {_gpus()}")
    yield from _disk()
    yield from _slurm()
    yield _profiles()
    yield _ffcv()


def table(found: list[Finding]) -> Any:
    """As a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table("what", "found", "what to do", box=SIMPLE_HEAD)
    for finding in found:
        shown.add_row(*(Text(cell) for cell in finding))
    return shown


def _slurm() -> Iterator[Finding]:
    if not shutil.which("sinfo"):
        yield Finding("SLURM", "not on this machine; --cluster auto trains here")
        return
    version = (scheduler.ask("sinfo", "--version") or "").strip()
    if not scheduler.answers():
        conf = os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf")
        yield Finding(
            "SLURM",
            "no controller answers; --cluster auto refuses",
            f"--cluster local, or: is slurmctld up? is {conf} right?",
        )
        return
    config = scheduler.config()
    yield Finding("SLURM", f"{version or 'version unknown'}, cluster {config.get('ClusterName', '?')}")
    form = "%P|%a|%l|%D|%c|%m|%G"
    for line in (scheduler.ask("sinfo", "-h", "-o", form) or "").splitlines():
        name, up, limit, nodes, cores, memory, gpus = line.split("|")
        gpus = "no GPUs" if gpus == "(null)" else gpus
        state = "" if up == "up" else f"ask why it is {up}"
        words = f"{nodes} nodes of {cores} cores, {int(memory.rstrip('+')) / 1000:.0f} GB, {gpus}; at most {limit}"
        yield Finding(f"partition {name}", words, state)
    yield Finding(
        "arrays", f"up to {scheduler.max_array_size()} elements; longer sweeps get as many, each takes several runs"
    )
    yield from _limits()
    yield _preemption(config)
    yield _accounting(config)
    yield _shared()


def _limits() -> Iterator[Finding]:
    """MaxSubmitJobs of this user, where a database keeps such limits."""
    form = "format=Account,Partition,QOS,MaxSubmit,MaxJobs"
    user = os.environ.get("USER") or str(os.getuid())
    text = scheduler.ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", form)
    for line in (text or "").splitlines():
        account, partition, qos, submit, jobs = line.split("|")
        where = (
            f"account {account}" + (f", partition {partition}" if partition else "") + (f", qos {qos}" if qos else "")
        )
        yield Finding("your limits", f"{where}: {submit or 'any number'} submitted, {jobs or 'any number'} running")


def _preemption(config: dict[str, str]) -> Finding:
    mode, kind = config.get("PreemptMode", "OFF"), config.get("PreemptType", "")
    signal = "preempt_send_user_signal" in config.get("SlurmctldParameters", "")
    wait = config.get("KillWait", "? sec").split()[0]
    warning = f"{'SIGUSR2' if signal else 'SIGTERM'} warns, SIGKILL after {wait} s"
    words = f"{mode}, {kind.rpartition('/')[2] or 'none'}; {warning}"
    short = wait.isdecimal() and int(wait) < 10
    return Finding("preemption", words, "save often: --checkpoint-interval 100" if short and mode != "OFF" else "")


def _accounting(config: dict[str, str]) -> Finding:
    if scheduler.ask("sacct", "-n", "-X", "-S", "now-1hour") is not None:
        return Finding("accounting", "sacct answers")
    return Finding("accounting", "none; runs tell their state themselves, only a silent death stays unexplained")


def _shared() -> Finding:
    """Whether the nodes would see this folder; known only of file systems that are certainly not shared."""
    results = _existing(store.results_dir())
    text = scheduler.ask("df", "--output=fstype", str(results)) or ""
    kind = text.split()[-1] if text.split() else "unknown"
    if kind in ("tmpfs", "overlay", "ramfs"):
        return Finding(
            "file system", f"results on {kind}", "other nodes cannot see it: set SOFTMLP_RESULTS, SOFTMLP_DATA"
        )
    return Finding("file system", f"results on {kind}; all nodes must see it under the same path")


def _disk() -> Iterator[Finding]:
    for what, folder in (("results", store.results_dir()), ("data", DATA_DIR)):
        there = _existing(folder)
        free = shutil.disk_usage(there).free / 1e9
        fix = f"free space, or set SOFTMLP_{what.upper()}" if free < LOW_DISK_GB else ""
        try:
            began = time.monotonic()
            with tempfile.NamedTemporaryFile(dir=there) as file:
                file.write(b"x")
                os.fsync(file.fileno())
            words = f"{folder}: {free:.0f} GB free, a durable write takes {1000 * (time.monotonic() - began):.0f} ms"
        except OSError as error:
            words, fix = f"{folder}: cannot be written ({error.strerror})", f"set SOFTMLP_{what.upper()}"
        yield Finding(what, words, fix)
        if what == "results" and not fix:
            yield _locks(there)


def _locks(folder: Path) -> Finding:
    """Whether the file system of the results can do what keeps two processes from one run."""
    lacking = []
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as place:
            first, second = Path(place, "first"), Path(place, "second")
            with first.open("w") as file:
                began = time.time()
                file.write("x")
                file.flush()
                os.fsync(file.fileno())
                skew = first.stat().st_mtime - (began + time.time()) / 2
                flock = locks.lock(file) is True
            for what, act in (
                ("hard links", lambda: os.link(first, second)),
                ("renaming", lambda: first.replace(second)),
            ):
                try:
                    act()
                except OSError as error:
                    lacking.append(f"{what} ({error.strerror})")
    except OSError as error:
        return Finding("locks", f"cannot be tried in {folder}: {error.strerror}", "set SOFTMLP_RESULTS")
    words = f"flock {'works' if flock else 'is refused: the processes themselves are looked up instead'}"
    words += f"; clock of the file server {skew:+.1f} s from this machine's"
    if lacking:
        return Finding("locks", f"{words}; no {', '.join(lacking)}", "no run can be claimed: set SOFTMLP_RESULTS")
    late = "runs cope, times shown are wrong: ask for NTP" if abs(skew) > 5 else ""
    return Finding("locks", f"{words}; hard links and renaming work", late)


def _profiles() -> Finding:
    return Finding("profiles", ", ".join(clusters.profiles()) or "none", "")


def _ffcv() -> Finding:
    try:
        versions = ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "ffcv", "submitit")
        )
    except importlib.metadata.PackageNotFoundError as error:
        return Finding("packages", f"{error.name} is missing", "make demo sets everything up")
    code = "import ffcv, torch; print(torch.cuda.device_count())"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(
            "packages", f"{versions}; importing takes over {IMPORT_SECONDS:.0f} s", "is the file system slow?"
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Finding("packages", f"{versions}; {lines[-1] if lines else 'importing fails'}", SYSTEM)
    return Finding("packages", f"{versions}; torch sees {done.stdout.strip()} GPUs")


def _gpus() -> str:
    gpus = local.visible_gpus("auto")
    return f"{len(gpus)} GPUs (this program has never run on any: compare with --device cpu)" if gpus else "no GPU"


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
