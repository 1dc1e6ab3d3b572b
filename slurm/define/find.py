"""What a person names to look at: sweeps, runs' folders, folders that hold them."""

import sys
from collections.abc import Iterable
from pathlib import Path

from engine.errors import Refusal
from engine.folder import published, store
from engine.folder.published import Study
from engine.run import SCHEME, Run
from slurm.define import load, seeds
from slurm.define.sweep import DEFINITION, Sweep


def named(name: str) -> Sweep | Study:
    """The sweep of that name or path, as `load`; where there is none, but tables of that name in the results, these.

    So are those of a grid that another scheme trained, which no sweep of this version stands for.
    """
    if name in load.names() or name.endswith(".py"):
        return load.load(name)
    alone = published.study(name, store.results_dir().absolute())
    gone = alone and not (
        (alone.folder / DEFINITION).exists() and any(map(published.is_ours, published.read(alone.table)))
    )
    return alone if alone and gone else load.load(name)


def find(what: Iterable[str]) -> tuple[list[Path], list[Run | None], list[Sweep | Study]]:
    """Folders of runs, each once, with their runs where a sweep tells them; and the sweeps, or the studies of which
    there are tables alone. Of a folder that holds runs, those of another scheme are left out, in words on stderr.

    Raises Refusal for a folder without runs of ours, and as `load`.
    """
    found: dict[str, tuple[Path, Run | None]] = {}
    sweeps: dict[str, Sweep | Study] = {}
    for word in what:
        if Path(word).is_dir() and word not in load.names():
            pairs: list[tuple[Path, Run | None]] = _of_folder(Path(word))
        elif "/" in word and not word.partition(seeds.MARK)[0].endswith(".py"):
            raise Refusal(f"{word} is not the folder of a run: it has no args.yaml")
        else:
            one = named(word)
            sweeps[one.name] = one
            pairs = list(zip(one.folders, one.runs, strict=True))
        for folder, run in pairs:
            found.setdefault(folder.name, (folder, run))
    return [folder for folder, _ in found.values()], [run for _, run in found.values()], list(sweeps.values())


def _of_folder(folder: Path) -> list[tuple[Path, Run | None]]:
    if (folder / "args.yaml").exists():
        if words := store.older([folder]):
            raise Refusal(words)
        return [(folder, None)]
    inside = sorted(path.parent for path in folder.glob("*/args.yaml"))
    ours = [path for path in inside if store.scheme_of(path) == SCHEME]
    if words := store.older(inside):
        if not ours:
            raise Refusal(words)
        print(words, file=sys.stderr)
    if ours:  # by model and seed: a folder begins with a hash
        return [(path, None) for path in sorted(ours, key=lambda path: path.name.partition("-")[::-1])]
    raise Refusal(f"{folder} is no run's folder and holds none; runs lie in {store.results_dir() / 'runs'}")
