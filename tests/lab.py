"""A real SLURM on this machine for tests: controller and three nodes as children of the test, gone when it ends.

Everything is on 127.0.0.1, in one temporary folder, with its own munge key and ports: a SLURM, munge or MariaDB of the
system is neither used nor touched. Nodes are named like addresses, as submitit takes the first node's name for the
address of rank 0. Bringing it up takes 0.2 s; with accounting (MariaDB and slurmdbd, for `sacct`) about 2 s.
"""

import contextlib
import ctypes
import getpass
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

NODES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
SERVING = ("idle", "mixed", "allocated", "completing")  # states of a node that answers
PATIENCE = 4  # times what a wait takes on an idle machine: a test that waits for a busy one has found nothing
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
PROGRAMS += ("slurmdbd", "sacct", "mariadbd", "mariadb-install-db", "my_print_defaults")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # where Debian keeps daemons
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

# cred_expire is also how long a requeued job waits; less than 5 is quietly taken for the default of 120 s.
SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{notice}SlurmctldParameters=preempt_send_user_signal
KillWait=20
MinJobAge=3600
SlurmdTimeout=10
MaxArraySize={max_array_size}
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000,bf_interval=1
MailProg=/bin/true
GresTypes=gpu
AccountingStorageType={storage}
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge/socket
PartitionName=low  Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL             MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE_CONF = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN\n"
)
GRES_CONF = "Name=gpu File=/dev/tty[0-1]\n"  # real device files, or SLURM counts none
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser={user}
PidFile={folder}/dbd.pid
LogFile={folder}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser={user}
StorageLoc=slurm_acct_db
"""


@dataclass(frozen=True)
class Job:
    """A line of squeue. `id` is that of an element of an array, such as 12_3, where there is one."""

    id: str
    state: str
    node: str
    name: str


class Lab:
    """Three nodes of 4 CPUs and 2 pretended GPUs each; partition `high` preempts jobs of the default one, `low`.

    Args:
        accounting: with slurmdbd, so that sacct answers.
        notice: tell a job with SIGUSR2 that it is about to be preempted (preempt_send_user_signal).
        grace_s: seconds from there to its end.
    """

    def __init__(
        self, *, accounting: bool = False, notice: bool = True, grace_s: int = 5, max_array_size: int = 1001
    ) -> None:
        self.accounting = accounting
        self.folder = Path(tempfile.mkdtemp(prefix="softmlp-lab-"))
        self.folder.chmod(0o755)  # munge refuses a socket that others could not reach
        for name in ("munge", "state", "spool", "log"):
            (self.folder / name).mkdir(mode=0o755)
        self._claim, base = _claim_ports()
        self._ports = {"ctld": base + 1, "dbd": base + 2, "mariadb": base + 3}
        self._daemons: dict[str, subprocess.Popen] = {}
        fields: dict[str, Any] = {
            "folder": self.folder,
            "host": platform.node().partition(".")[0],
            "user": getpass.getuser(),
            "notice": "" if notice else "#",
            "grace": grace_s,
            "max_array_size": max_array_size,
            "storage": "accounting_storage/slurmdbd" if accounting else "accounting_storage/none",
            **self._ports,
        }
        nodes = [NODE_CONF.format(node=node, port=base + 10 + i, **fields) for i, node in enumerate(NODES)]
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(SLURM_CONF.format(**fields) + "".join(nodes))
        (self.folder / "gres.conf").write_text(GRES_CONF)
        self._write_secret("slurmdbd.conf", SLURMDBD_CONF.format(**fields).encode())
        self._write_secret("munge/key", os.urandom(128))
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        self.env = {**own, "SLURM_CONF": str(self.conf), "PATH": PATH, "GLOO_SOCKET_IFNAME": "lo"}

    def __enter__(self) -> "Lab":
        try:
            munge = self.folder / "munge"
            files = {name: f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")}
            self._start("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files.values())
            self.wait_for((munge / "socket").exists, 10)
            if self.accounting:
                self._start_accounting()
            self.controller_start("-c")
            for node in NODES:
                self._start_node(node)
            self._wait_nodes(*NODES)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab, daemons and jobs, and remove its folder."""
        for name in reversed(list(self._daemons)):
            self._stop(name, signal.SIGKILL)
        while left := using(self.conf).keys() - {os.getpid()}:
            for pid in left:
                _kill(pid)
            time.sleep(0.02)
        self._claim.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what a user does ---------------------------------------------------------------------------------------------

    def run(self, *command: str | Path, check: bool = True, timeout: float = 60, **env: str) -> str:
        """What a command prints, errors too; AssertionError if it fails."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=PATIENCE * timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def jobs(self, *states: str) -> list[Job]:
        """Elements that the controller knows, ended ones too; only those in some states, if any are named."""
        table = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%j")
        jobs = [Job(*line.split("|")) for line in table.splitlines()]
        return [job for job in jobs if not states or job.state in states]

    def wait_for(self, condition: Callable[[], Any], seconds: float, said: Callable[[], Any] = lambda: "") -> Any:
        """The first true value of a condition, looked at ten times a second; AssertionError after some seconds."""
        deadline = time.monotonic() + PATIENCE * seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {PATIENCE * seconds} s; {said()}\n{self.log()}"
            time.sleep(0.1)
        return value

    def wait_idle(self, seconds: float) -> None:
        """Wait until no job waits or runs."""
        self.wait_for(lambda: not self.run("squeue", "-h"), seconds, lambda: self.run("squeue"))

    def clear(self) -> None:
        """End all jobs, those with stopped processes too, and open all nodes: what a failed test may have left."""
        if "slurmctld" not in self._daemons:
            self.controller_start()
        for node in NODES:
            if node not in self._daemons:
                self.node_up(node)
        if self.run("squeue", "-h"):
            self.run("scancel", f"--user={getpass.getuser()}")
            for pid in self.processes():
                _kill(pid, signal.SIGCONT)
            self.wait_idle(60)
        self.open_to_jobs()

    def log(self) -> str:
        """The ends of the daemons' logs, for the message of a failed test."""
        texts = {path.name: path.read_text(errors="replace") for path in sorted((self.folder / "log").iterdir())}
        return "\n".join(f"{name}:\n" + "\n".join(text.splitlines()[-8:]) for name, text in texts.items())

    # --- faults -------------------------------------------------------------------------------------------------------

    def close_to_jobs(self, *nodes: str) -> None:
        """Let what runs on nodes end there, and start nothing new, so that what was sent away stays away."""
        for node in nodes:
            self.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")

    def open_to_jobs(self) -> None:
        """Undo `close_to_jobs` and `preempt`; all nodes are up."""
        self.run("scancel", "--name=preemptor")
        for node in NODES:
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self._wait_nodes(*NODES)

    def preempt(self, node: str) -> None:
        """Take a node for a job of the partition that preempts, which keeps it until `open_to_jobs`."""
        job = ["-p", "high", "-w", node, "--exclusive", "-J", "preemptor", "-o", "/dev/null"]
        self.run("sbatch", *job, "--wrap", "sleep 3600")

    def node_down(self, node: str) -> None:
        """The node's daemon dies and the scheduler takes the node for lost, but its processes live on."""
        self._stop(node, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def node_kill(self, node: str) -> None:
        """The node loses its power."""
        self._kill_node(node)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def node_up(self, node: str) -> None:
        """The node starts anew, and is idle."""
        self._kill_node(node)
        self._start_node(node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self._wait_nodes(node)

    def controller_stop(self) -> None:
        """As for an upgrade: it saves its state first (after a crash, what it learnt in the last 5 s would be lost)."""
        self._stop("slurmctld", signal.SIGTERM)

    def controller_start(self, *options: str) -> None:
        self._start("slurmctld", "-D", *options)
        self._wait_port("ctld", "slurmctld")

    def processes(self, node: str | None = None) -> list[int]:
        """Jobs' processes, and what guards them (slurmstepd), of one node or of all."""
        daemons = {daemon.pid for daemon in self._daemons.values()}
        places = {pid: env.get("SLURMD_NODENAME") for pid, env in using(self.conf).items() if pid not in daemons}
        return sorted(pid for pid, place in places.items() if place and node in (None, place))

    # --- daemons ------------------------------------------------------------------------------------------------------

    def _start(self, name: str, *options: str, node: str = "") -> None:
        """Start a daemon as a child in the foreground, which dies with the process that runs the tests."""
        program = shutil.which(name, path=PATH)
        # slurmstepd inherits the environment of its slurmd, and is found by it.
        env = {**self.env, "SLURMD_NODENAME": node} if node else self.env
        with (self.folder / "log" / "daemons").open("a") as out:
            self._daemons[node or name] = subprocess.Popen(
                [program, *options], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )  # fmt: skip

    def _start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, node=node)

    def _wait_nodes(self, *nodes: str) -> None:
        """Until they take jobs: one that was drained is `idle*`, and none to sbatch --test-only, until it answers."""

        def states() -> list[str]:
            return self.run("sinfo", "-h", "-N", "-p", "low", "-n", ",".join(nodes), "-o", "%T").split()

        self.wait_for(lambda: len(found := states()) == len(nodes) and {*found} <= {*SERVING}, 30, states)

    def _kill_node(self, node: str) -> None:
        self._stop(node, signal.SIGKILL)
        for pid in self.processes(node):
            _kill(pid)

    def _start_accounting(self) -> None:
        """MariaDB with small logs (large ones take seconds to write), then slurmdbd; both before the controller."""
        data, user, logs = self.folder / "mariadb", getpass.getuser(), "--innodb-log-file-size=8M"
        self.run(
            "mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}", "--skip-test-db", logs,
            "--auth-root-authentication-method=normal", "--innodb-buffer-pool-size=16M",
        )  # fmt: skip
        self._start(
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--user={user}", f"--socket={data}/socket",
            "--bind-address=127.0.0.1", f"--port={self._ports['mariadb']}", logs,
            "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin",
        )  # fmt: skip
        self._wait_port("mariadb", "mariadbd")
        self._start("slurmdbd", "-D")
        self._wait_port("dbd", "slurmdbd")

    def _stop(self, name: str, number: int) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon:
            daemon.send_signal(number)
            daemon.wait(PATIENCE * 30)

    def _wait_port(self, name: str, daemon: str) -> None:
        def answers() -> bool:
            assert self._daemons[daemon].poll() is None, f"{daemon} ended at once\n{self.log()}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._ports[name]), 0.2):
                return True
            return False

        self.wait_for(answers, 60)

    def _write_secret(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)


def missing() -> list[str]:
    """Programs that a lab needs and this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


def _claim_ports() -> tuple[socket.socket, int]:
    """The first of twenty free ports, and a socket that keeps other labs away from them while it is open."""
    for base in range(20_000, 30_000, 20):  # below the ports that the kernel hands out
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", base))
            for port in range(base + 1, base + 20):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("0.0.0.0", port))
        except OSError:
            claim.close()
        else:
            return claim, base
    raise AssertionError("no free ports between 20000 and 30000")


def using(conf: Path) -> dict[int, dict[str, str]]:
    """Processes that were started with this configuration of SLURM, and their environment at that time."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it just ended, or is another user's
                text = (folder / "environ").read_bytes().decode(errors="replace")
                env = dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
                if env.get("SLURM_CONF") == str(conf):
                    found[int(folder.name)] = env
    return found


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
