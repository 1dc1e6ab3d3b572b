"""Sweeps by name. The name is the address: `demo` is slurm/sweeps/demo.py.

A sweep's file is plain Python with a docstring (the question) and `runs()`, which yields engine.run.Run; it may have
`resources(run)`, which says what a run needs on a cluster, PROBES, what is measured on its finished runs, CONTRASTS,
the few comparisons that it was made for, FAMILIES, the same in families with what they claim, STOPPING, when it has
seeds enough, BASELINE, what its tables compare all rungs with, and LABELS, what figures call them. Reading one imports
neither torch nor timm, so that planning and status answer at once.
"""

import contextlib
import difflib
import itertools
import re
import traceback
import types
from inspect import cleandoc
from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.run import Run, unknown
from slurm.cluster import clusters
from slurm.define import asked, grid, seeds
from slurm.define.asked import short
from slurm.define.sweep import MAX_RUNS, Sweep

SWEEPS = Path(__file__).parent.parent / "sweeps"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TAKEN = ("runs", "published")  # folders of results/ that hold something else


def names() -> list[str]:
    """Sweeps of slurm/sweeps/, sorted."""
    return sorted(path.stem for path in SWEEPS.glob("*.py") if _NAME.fullmatch(path.stem))


def load(name: str) -> Sweep:
    """The sweep of that name, or of a .py file given by its path, whose stem is then the name; or a grid by its name.

    `NAME@0-9` is the same with these seeds (slurm/define/seeds.py).

    Raises Refusal: no such sweep, or its file does not give a list of valid runs.
    """
    name, mark, text = name.partition(seeds.MARK)
    wanted = seeds.parse(text) if mark else ()
    if mark and name not in names() and grid.load(name):
        raise Refusal(f"{name} is a grid, which has its seeds among its values: --grid seed={text}")
    if name not in names() and _NAME.fullmatch(name) and (launched := grid.load(name)):
        return launched
    path = _find(name)
    module = types.ModuleType(f"slurm.sweeps.{path.stem}")
    module.__file__ = str(path)
    found: dict[str, Run] = {}
    dropped = 0
    with _refusing(path):
        # Compiled here and not imported: Python's cache would overlook a file changed within the same second.
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        if not callable(getattr(module, "runs", None)):
            raise Refusal("it has no function runs()")
        for item in itertools.islice(module.runs() or (), MAX_RUNS + 1):
            if not isinstance(item, Run):
                raise Refusal(f"runs() gave {short(item)}, which is not a Run")
            if (other := found.setdefault(item.signature, item)) is not item:
                if other != item:
                    raise Refusal(f"two different runs have the signature {item.signature}; change one a little")
                dropped += 1
        if wanted:
            found = {run.signature: run for run in seeds.replaced(found.values(), wanted)}
        needs = tuple(_needs(module, run) for run in found.values()) if hasattr(module, "resources") else ()
        probes = _probes(getattr(module, "PROBES", ()))
        contrasts = asked.contrasts(getattr(module, "CONTRASTS", {}), found.values())
        families = asked.families(getattr(module, "FAMILIES", {}), found.values())
        stopping = asked.stopping(getattr(module, "STOPPING", ()))
        labels = asked.labels(getattr(module, "LABELS", {}), found.values())
        baseline = asked.baseline(getattr(module, "BASELINE", ()), found.values())
    if not found:
        raise Refusal(f"sweep {path.stem}: runs() gave no run ({path})")
    if len(found) + dropped > MAX_RUNS:
        raise Refusal(f"sweep {path.stem}: runs() gave more than {MAX_RUNS:,} runs ({path})")
    question = " ".join(cleandoc(module.__doc__ or "").partition("\n\n")[0].split())
    told = {"probes": probes, "contrasts": contrasts, "families": families, "stopping": stopping, "baseline": baseline}
    told["labels"] = labels
    name = path.stem + (f"{seeds.MARK}{seeds.told(wanted)}" if wanted else "")
    return Sweep(name, question, tuple(found.values()), dropped, needs, **told)


def _find(name: str) -> Path:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise Refusal(f"there is no sweep file {name}")
    else:
        path = SWEEPS / f"{name}.py"
        if name not in names():
            close = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names())}; or give a .py file"
            raise Refusal(f"unknown sweep {name!r}; {hint}")
    if not _NAME.fullmatch(path.stem) or path.stem in _TAKEN:
        rule = f"letters, digits and _, at most 64, and not {' or '.join(_TAKEN)}"
        raise Refusal(f"a sweep cannot be called {path.stem!r}, as that names its folder; take {rule}")
    return path


def _needs(module: types.ModuleType, run: Run) -> dict[str, Any]:
    """What the file says that a run needs, checked. Raises Refusal for what is no resource of a run."""
    given = module.resources(run)
    if not isinstance(given, dict):
        raise Refusal(f"resources() gave {short(given)}, which is no dict")
    for key in given:
        if key not in clusters.OF_A_RUN:
            raise Refusal(f"resources(): {unknown('resource', str(key), clusters.OF_A_RUN)}")
    clusters.make(given, "resources()")
    return given


def _probes(given: Any) -> tuple[str, ...]:
    """PROBES, checked for its form; whoever may import the probes checks the names (scripts/sweep.py)."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        raise Refusal(f'PROBES must be a list of names, as ["shift"], and is {short(given)}')
    return tuple(given)


@contextlib.contextmanager
def _refusing(path: Path) -> Any:
    """Whatever goes wrong in a sweep's file, said in one line that names the file and, where known, the line."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        code = error.code if isinstance(error, Refusal) else Refusal("").code
        raise Refusal(f"sweep {path.stem}: {_said(error)} ({where})", code) from error


def _said(error: Exception) -> str:
    if isinstance(error, Refusal):
        return str(error)
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".splitlines()[0]
