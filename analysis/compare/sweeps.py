"""What analysis asks of a sweep: a slurm.define.sweep.Sweep has it, which is not imported from here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from engine.fields.claims import Family
from engine.run import Run


class Sweep(Protocol):
    """Runs with a question, their folders, and what they were made to compare."""

    @property
    def name(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def runs(self) -> Sequence[Run]: ...
    @property
    def folder(self) -> Path: ...
    @property
    def folders(self) -> Sequence[Path]: ...
    @property
    def probes(self) -> Sequence[str]: ...
    @property
    def contrasts(self) -> Mapping[str, Mapping[str, float]]: ...
    @property
    def families(self) -> Mapping[str, Family]: ...
    @property
    def baseline(self) -> Sequence[str]: ...
