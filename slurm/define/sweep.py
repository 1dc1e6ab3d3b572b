"""A sweep is a list of runs with a question: the value. slurm/define/load.py and slurm/define/grid.py make it."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from engine.errors import OUTPUT, Refusal
from engine.fields.claims import Family
from engine.folder import store
from engine.run import Run

MANIFEST = "manifest.csv"  # in a sweep's folder: its runs as they were at the last launch
DEFINITION = "sweep.yaml"  # of a sweep that has no file, in its folder
MAX_RUNS = 100_000  # what yields more is a mistake, or never ends


@dataclass(frozen=True)
class Sweep:
    """Runs to compare, in the order of the file; `dropped` repeats of a run were left out.

    The question is the first paragraph of the file's docstring. `needs` holds, per run, what the file's
    `resources(run)` says of it (fields of slurm.cluster.clusters.Resources); it is empty where there is no such
    function.
    """

    name: str
    question: str
    runs: tuple[Run, ...]
    dropped: int = 0
    needs: tuple[dict[str, Any], ...] = ()
    definition: dict[str, Any] | None = None
    """Of a sweep that has no file (slurm/define/grid.py)."""
    probes: tuple[str, ...] = ()
    """PROBES of the file: what is measured on its finished runs before the report is written (analysis/probes/)."""
    contrasts: dict[str, dict[str, float]] = field(default_factory=dict)
    """CONTRASTS of the file: per name the weights of rungs, whose sum is 0. Written down before the runs are there,
    they are tested with a correction among themselves alone (analysis/compare/contrasts.py). A rung is called as
    tables call it, with its condition where it is trained in several ways: `convmixer_nano lr=0.004`
    (engine/fields/rungs.py)."""
    families: dict[str, Family] = field(default_factory=dict)
    """FAMILIES of the file: contrasts with a margin, corrected within their family, on one model of all runs
    (analysis/factorial/). One that claims an ingredient and differs in more is refused (engine/fields/claims.py)."""
    stopping: tuple[tuple[float, str], ...] = ()
    """STOPPING of the file: residual deviations in points, ascending, and what follows up to each
    (scripts/seeds.py)."""
    labels: dict[str, str] = field(default_factory=dict)
    """LABELS of the file: what rungs are called in figures; without, they are called by their family and what tells
    them from their kin."""
    baseline: tuple[str, ...] = ()
    """BASELINE of the file: the rung that all others are compared with, or several, of which a table takes the first
    that it holds."""

    @property
    def folder(self) -> Path:
        """What belongs to the sweep as a whole; the runs lie in RESULTS/runs/ and may be shared."""
        return store.results_dir().absolute() / self.name

    @cached_property
    def folders(self) -> list[Path]:
        """The folder of each run."""
        return [store.folder_of(run, store.results_dir().absolute()) for run in self.runs]

    @property
    def jobs_folder(self) -> Path:
        """What the workers need: submitit's files, one folder per launch, and the locks of their places."""
        return self.folder / ".jobs"

    def make_folder(self) -> None:
        """Create the folder, with its MANIFEST, the list of its runs; a file is touched only when it changes."""
        try:
            self.jobs_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"cannot create {self.folder}: {error.strerror}; set SOFTMLP_RESULTS", OUTPUT) from None
        rows = [
            {"signature": run.signature, "folder": run.name, "rung": run.rung, "seed": run.seed} for run in self.runs
        ]
        files = {MANIFEST: store.csv_text(rows)}
        if self.definition:
            files[DEFINITION] = yaml.safe_dump(self.definition, sort_keys=False, allow_unicode=True)
        for name, text in files.items():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != text.encode():
                store.write_bytes(path, text.encode())
