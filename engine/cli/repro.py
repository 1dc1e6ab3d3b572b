"""The command line that repeats a run: scripts/train.py with the flags of all that differs from the defaults."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from engine.data.sets import DATASETS
from engine.run import How, Run


def command(run: Run, how: Mapping[str, Any] | None = None, *, seed: bool = True) -> str:
    """`python scripts/train.py ...` for a shell; without `seed`, the flags that all seeds of a rung share.

    Args:
        how: fields of engine.run.How that are to be said, whatever their defaults.
    """
    words = ["python", "scripts/train.py", "--model", run.model]
    dataset = DATASETS.get(run.dataset)
    for key, value in run.record().items():
        if key in ("model", "seed") or getattr(run, key) == Run.model_fields[key].default:
            continue
        if key == "img_size" and dataset and value == dataset.img_size:
            continue
        words += _flag(key, value)
    for key, value in (how or {}).items():
        assert key in How.model_fields
        words += _flag(key, str(value) if isinstance(value, Path) else value)
    return shlex.join([*words, "--seed", str(run.seed)] if seed else words)


def _flag(key: str, value: Any) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    if isinstance(value, dict):
        return [flag, *(f"{name}={_yaml(argument)}" for name, argument in value.items())]
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def _yaml(value: Any) -> str:
    """A value as the command line reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")
