"""Where and with what a sweep is trained: resources of a job, profiles of clusters, and which cluster `auto` means."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engine.errors import CLUSTER, Refusal
from engine.fields import values
from engine.run import unknown
from slurm.cluster import scheduler

BUILT_IN = ("auto", "local", "debug", "slurm")
Count = Annotated[int, Field(ge=1)]
Word = Annotated[str, Field(pattern=r"^[^\s'\"\\]+$")]


class Resources(BaseModel):
    """What one element of an array asks for. Nodes, gpus, tasks and cpus mean what they mean to submitit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: Word | None = Field(None, description="SLURM's; by default the cluster's own default")
    account: Word | None = Field(None, description="SLURM's")
    qos: Word | None = Field(None, description="SLURM's")
    constraint: Word | None = Field(None, description="SLURM's, such as a100")
    nodes: Count = Field(1, description="nodes that train one run together")
    tasks: Count = Field(1, description="processes per node that train one run together")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs per node")
    cpus: Count = Field(4, description="cores per task")
    mem_gb: Annotated[float, Field(gt=0)] | None = Field(None, description="memory per node")
    timeout_min: Count = Field(240, description="time limit of an element, which is then requeued and goes on")
    signal_delay_s: Count = Field(90, description="seconds that SLURM warns before the time limit")
    setup: tuple[str, ...] = Field((), description="lines of shell before Python starts, such as module load")
    python: str | None = Field(None, description="command that starts Python in a job (default: this one)")
    array_parallelism: Count | None = Field(None, description="elements of an array that run at a time (default: all)")
    pack: Count = Field(1, description="runs at a time in one element; they share its cores and GPUs")

    @field_validator("setup", mode="before")
    @classmethod
    def _lines(cls, given: Any) -> Any:
        return given.splitlines() if isinstance(given, str) else given

    @property
    def world(self) -> int:
        """Processes that train one run together."""
        return self.nodes * self.tasks

    @property
    def warning_s(self) -> int:
        """signal_delay_s, or half of a time limit so short that the warning would come at once."""
        return min(self.signal_delay_s, self.timeout_min * 30)

    def told(self) -> str:
        """In words, for one line."""
        parts = [f"{self.nodes} nodes"] if self.nodes > 1 else []
        parts += [f"{self.tasks} tasks per node"] if self.tasks > 1 else []
        parts += [f"{self.gpus} GPU" + "s" * (self.gpus > 1)] if self.gpus else []
        parts += [f"{self.cpus} core" + "s" * (self.cpus > 1)]
        parts += [f"{self.mem_gb:g} GB"] if self.mem_gb else []
        parts += [f"{self.timeout_min} min"]
        parts += [f"partition {self.partition}"] if self.partition else []
        return ", ".join(parts + ([f"{self.pack} runs at a time"] if self.pack > 1 else []))


# What a sweep's `resources(run)` may say.
OF_A_RUN = ("nodes", "tasks", "gpus", "cpus", "mem_gb", "timeout_min")


def pick(name: str) -> str:
    """local, debug, slurm or a profile's name; for `auto` slurm where its commands are installed, otherwise local.

    Raises Refusal: no such cluster (USAGE), or no controller answers (CLUSTER): then `auto` is no reason to train on
    what may be a login node.
    """
    if name == "auto":
        if not scheduler.installed():
            return "local"
        if not scheduler.answers():
            line = "SLURM is installed here (sinfo), but no controller answers"
            raise Refusal(f"{line}; repeat when it does, or train on this machine: --cluster local", CLUSTER)
        return "slurm"
    if name in ("local", "debug"):
        return name
    if name != "slurm" and name not in (known := profiles()):
        raise Refusal(unknown("cluster", name, [*BUILT_IN, *known]))
    if not scheduler.answers():
        raise Refusal(f"--cluster {name}, but no SLURM controller answers (sinfo); use --cluster local", CLUSTER)
    return name


def resources(
    cluster: str, run: Mapping[str, Any], flags: Mapping[str, Any], env: Mapping[str, str] = os.environ
) -> Resources:
    """Flags over what the sweep says of a run, over SOFTMLP_PARTITION and so on, over the profile, over the defaults.

    Raises Refusal naming what is wrong and where it comes from.
    """
    given: dict[str, Any] = dict(profiles().get(cluster, {}))
    variables = {key: f"SOFTMLP_{key.upper()}" for key in Resources.model_fields}
    given |= {key: env[name] for key, name in variables.items() if env.get(name)}
    made = make({**given, **run, **flags})
    if made.world > 1 and made.pack > 1:
        if "pack" in flags:
            raise Refusal(f"--pack {made.pack}, but {made.world} processes train each run together; leave one out")
        made = made.model_copy(update={"pack": 1})
    return made


def make(fields: Mapping[str, Any], where: str = "") -> Resources:
    """Validated; raises Refusal with one line that names the field and, for a misspelling, ours."""
    prefix = f"{where}: " if where else ""
    for key in fields:
        if key not in Resources.model_fields:
            raise Refusal(prefix + unknown("resource", str(key), Resources.model_fields))
    try:
        return Resources(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        message = first["msg"]
        raise Refusal(f"{prefix}{name} {fields.get(name)!r}: {message[0].lower()}{message[1:]}") from None


def profiles() -> dict[str, dict[str, Any]]:
    """slurm/clusters.yaml, or the file of SOFTMLP_CLUSTERS: name -> fields of Resources, validated."""
    path = values.folder("SOFTMLP_CLUSTERS", Path(__file__).parent.parent / "clusters.yaml")
    try:
        table, _ = values.read(path)
    except Refusal as refusal:
        named = "; it is named by SOFTMLP_CLUSTERS" if os.environ.get("SOFTMLP_CLUSTERS") else ""
        raise Refusal(f"{refusal}{named}") from None
    if not all(isinstance(fields, dict) for fields in table.values()):
        raise Refusal(f"{path}: expected a name, and below it 'key: value' lines, per cluster")
    for name, fields in table.items():
        make(fields, f"{path}, {name}")
        if name in BUILT_IN:
            raise Refusal(f"{path}: a profile cannot be called {name}; that word has a meaning already")
    return table
