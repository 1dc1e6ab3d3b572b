"""Where and with what a sweep is trained: resources of a job, profiles of clusters, and which cluster `auto` means."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.errors import CLUSTER, Refusal
from engine.fields import values
from engine.run import unknown
from slurm.cluster import scheduler

BUILT_IN = ("auto", "local", "debug", "slurm")
Count = Annotated[int, Field(ge=1)]
Word = Annotated[str, Field(pattern=r"^[^\s'\"\\]+$")]
# Options of sbatch that have a field here, and those by which jobs are found, started again and told to leave.
FIELDS = {"partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "nodes": "nodes"}
FIELDS |= {"ntasks-per-node": "tasks", "cpus-per-task": "cpus", "mem": "mem_gb", "time": "timeout_min"}
FIELDS |= {"gpus": "gpus", "gpus-per-node": "gpus", "gpus-per-task": "gpus", "array": "array_parallelism"}
FIELDS |= {"signal": "signal_delay_s"}
OURS = ("job-name", "comment", "output", "error", "open-mode", "requeue", "no-requeue", "wrap", "wait", "parsable")
OURS += ("test-only", "ntasks")
_OPTION = re.compile(r"([a-z][a-z0-9-]*)(=[^\n]+)?")


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
    sbatch: tuple[str, ...] = Field(
        (),
        description="any other option of sbatch, as mail-type=END exclude=n7 reservation=R gres=gpu:a100:1 exclusive",
    )

    @field_validator("setup", mode="before")
    @classmethod
    def _lines(cls, given: Any) -> Any:
        return given.splitlines() if isinstance(given, str) else given

    @field_validator("sbatch", mode="before")
    @classmethod
    def _options(cls, given: Any) -> Any:
        return options(given)

    @model_validator(mode="after")
    def _gpus_once(self) -> "Resources":
        if self.gpus and self._gres_gpus:
            raise ValueError(f"gpus {self.gpus} and sbatch gres={self.asked['gres']} both ask for GPUs; leave one out")
        return self

    @property
    def asked(self) -> dict[str, str | bool]:
        """The options of sbatch by name; True for one without a value."""
        pairs = (option.partition("=") for option in self.sbatch)
        return {key: value if equals else True for key, equals, value in pairs}

    @property
    def gpus_per_node(self) -> int:
        """By whichever option they were asked for."""
        return self.gpus or self._gres_gpus

    @property
    def _gres_gpus(self) -> int:
        """Of `gres=gpu:a100:2,license:1`, 2; a kind without a number is one."""
        kinds = [kind.removeprefix("gres/").split(":") for kind in str(self.asked.get("gres", "")).split(",")]
        return sum(int(words[-1]) if words[-1].isdecimal() else 1 for words in kinds if words[0] == "gpu")

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
        parts += self.sbatch
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

    Options of sbatch add up, and each is taken from where it wins.

    Raises Refusal naming what is wrong and where it comes from.
    """
    variables = {key: f"SOFTMLP_{key.upper()}" for key in Resources.model_fields}
    layers: list[Mapping[str, Any]] = [dict(profiles().get(cluster, {}))]
    layers += [{key: env[name] for key, name in variables.items() if env.get(name)}, run, flags]
    given: dict[str, Any] = {}
    for layer in layers:
        own = make(layer)
        if "gpus" in layer:  # what asks for GPUs takes the place of what asked for them below
            given["sbatch"] = [option for option in given.get("sbatch", ()) if not option.startswith("gres=gpu")]
        if own._gres_gpus:
            given.pop("gpus", None)
        given |= {**layer, "sbatch": [*given.get("sbatch", ()), *own.sbatch]}
    made = make(given)
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
        name = str(first["loc"][0]) if first["loc"] else "gpus"  # the only rule about two fields
        message = first["msg"].removeprefix("Value error, ")
        raise Refusal(f"{prefix}{name} {fields.get(name)!r}: {message[0].lower()}{message[1:]}") from None


def options(given: Any) -> tuple[str, ...]:
    """Options of sbatch as `key=value` or `key`, sorted, the last of each key, from words, a line or a mapping.

    Raises ValueError for what is no option, and for one that is a resource here or ours alone.
    """
    if isinstance(given, str):
        given = shlex.split(given)
    if isinstance(given, Mapping):
        given = [str(key) if value is True else f"{key}={value}" for key, value in given.items() if value is not False]
    if not isinstance(given, Iterable):
        raise ValueError("options of sbatch are words such as mail-type=END")
    found = {}
    for word in map(str, given):
        if not (match := _OPTION.fullmatch(word.removeprefix("--"))):
            raise ValueError(f"'{word}' is no option of sbatch; write KEY=VALUE, as in mail-type=END")
        key = match[1]
        if key in FIELDS:
            raise ValueError(f"{key} is --{FIELDS[key].replace('_', '-')} here" + _typed(key))
        if key in OURS:
            raise ValueError(f"{key} is set by the launch, which finds and requeues its jobs by it; leave it out")
        found[key] = match[0]
    return tuple(found[key] for key in sorted(found))


def _typed(key: str) -> str:
    return ", or gres=gpu:TYPE:NUMBER for one type" if key.startswith("gpus") else ""


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
