"""Print the symmetry signature of models: which relabelings of the pixels leave their learning problem the same.

Each cell is the largest difference between the losses of two copies trained in float64, one of them on relabeled images
with its weights moved accordingly; "=" says that it is rounding. More is in analysis/bias/symmetry.py. Without a name
the nano variants of the whole zoo are measured, in a minute or two, and results/symmetry.csv is replaced.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.tables import check_target, write
from engine.errors import Refusal
from engine.folder import store

MARKS = {"pass": "=", "fail": "", "undetermined": "?"}


def main() -> None:
    parser = Parser(prog="scripts/symmetry.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "model", nargs="*", help="names or patterns such as 'mixer*' (default: '*_nano*', and the file)"
    )
    parser.add_argument("--opt", nargs="+", help="optimizers of scripts/train.py (default: adamw sgd)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and relabelings")
    parser.add_argument("--results-file", type=Path, help="write the rows to this .csv, .json or .md")
    given = parser.parse()
    check_target(given.results_file)

    import archs
    from analysis.bias import symmetry
    from engine.run import Run

    opts = given.opt or symmetry.OPTIMIZERS
    for opt in opts:
        Run(opt=opt)  # refuses an unknown one
    names = [name for pattern in given.model or ["*_nano*"] for name in archs.list_archs(pattern) or [pattern]]
    for name in names:
        if name not in archs.list_archs():
            raise Refusal(f"no model of this zoo matches '{name}'; all: python scripts/list_models.py")
    rows = []
    for number, name in enumerate(names, 1):
        rows += symmetry.table([name], opts, seed=given.seed)
        print(f"{number}/{len(names)} {name}", file=sys.stderr)
    show(_table(rows, symmetry))
    whole = not (given.model or given.opt or given.seed)
    if path := given.results_file or (store.results_dir() / "symmetry.csv" if whole else None):
        write(path, rows)
        print(path)


def _table(rows: list[dict[str, Any]], symmetry: ModuleType) -> Any:
    from rich.table import Table

    made = Table("model", "optimizer", caption="; ".join(f"{key}: {text}" for key, text in symmetry.GROUPS.items()))
    for header in (*symmetry.GROUPS, "log10 size"):
        made.add_column(header, justify="right")
    for row in rows:
        gaps = [f"{MARKS[symmetry.verdict(row[group])]}{row[group]:.0e}" for group in symmetry.GROUPS]
        made.add_row(row["model"], row["opt"], *gaps, f"{row['log10_size']:.1f}")
    return made


if __name__ == "__main__":
    run_main(main)
