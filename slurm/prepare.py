"""What must hold before a worker starts: models that can be built, the data, and a folder per run."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import DATA, Refusal
from engine.folder import store
from engine.run import Run, make_how

# What decides whether a model can be built and trained on its data; one run of each is tried out.
TRIED = ("rung", "dataset", "img_size", "drop_path", "initial_identity", "batch_size", "mode")


def prepare(runs: Sequence[Run], how: dict[str, Any]) -> None:
    """Try out the models of runs that never began, write their data, make their folders.

    Args:
        how: fields of engine.run.How.

    Raises Refusal: a model that cannot be built, data that cannot be had.
    """
    results = store.results_dir().absolute()
    _try_out([run for run in runs if not (store.folder_of(run, results) / "env.json").exists()], results)
    _write_data(runs, make_how(how).data_dir)
    for run in runs:
        if not (store.folder_of(run, results) / "args.yaml").exists():  # otherwise the worker compares it
            store.make_folder(run, store.folder_of(run, results))


def has_torch() -> bool:
    """Whether torch is installed, without the seconds that importing it takes."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


def _try_out(new: Sequence[Run], results: Path) -> None:
    """Build one model of each kind; not where torch cannot be imported, as on a login node that only submits."""
    if not new:
        return
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        lacking = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"models are not tried out here but in the jobs: {lacking}", flush=True)
        return
    from engine.models import preflight

    kinds = {(*(getattr(run, key) for key in TRIED), bool(run.mixup or run.cutmix)): run for run in new}
    for run in kinds.values():
        preflight(run, store.folder_of(run, results))


def _write_data(runs: Sequence[Run], data_dir: Path) -> None:
    from engine.data.ensure import ensure  # needs NumPy, which a login node may lack

    for dataset, size, splits in dict.fromkeys((run.dataset, run.stored, run.splits) for run in runs):
        try:
            ensure(dataset, size, data_dir, splits=splits)
        except ImportError as error:
            words = f"writing the .beton files of {dataset} needs a package that is not here ({error})"
            do = f"python scripts/make_beton.py --dataset {dataset}, where it is, with --data-dir {data_dir}"
            raise Refusal(f"{words}; run {do}", DATA) from None
