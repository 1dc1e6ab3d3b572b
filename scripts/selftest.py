"""Test the laboratory on a task whose answer is known: shared needs fewer images than unshared, unshared than dense.

In a quarter of a minute, or in a minute or two with --full, the form whose result is kept in results/dsd.json. Exit
code 1 if the order is not recovered: then do not trust what else is compared here. analysis/bias/dsd.py says more.
"""

import json
import sys
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.tables import check_target
from engine.folder import files, store


def main() -> None:
    parser = Parser(prog="scripts/selftest.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="more seeds, patches and steps; replaces results/dsd.json")
    parser.add_argument("--results-file", type=Path, help="write the result to this .json")
    given = parser.parse()
    check_target(given.results_file, (".json",))

    from analysis.bias import dsd

    path = given.results_file or (store.results_dir() / "dsd.json" if given.full else None)
    result = dsd.measure(dsd.FULL if given.full else dsd.QUICK)
    show(_table(result))
    if path is not None:
        files.write_bytes(path, (json.dumps(result, indent=2) + "\n").encode())
        print(path)
    print("passed: the order is recovered" if result["passed"] else "FAILED: do not trust what is compared here")
    sys.exit(0 if result["passed"] else 1)


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    made = Table("patches", "best, %", "level, %", "what", "value", "95 % interval", "order")
    for task in result["tasks"]:
        start = (str(task["patches"]), f"{100 * task['best']:.1f}", f"{100 * task['level']:.1f}")
        for kind, images in task["images"].items():
            never = f", {images['never']} seeds never" if images["never"] else ""
            made.add_row(*start, f"images, {kind}{never}", *_amount(images), "")
        for pair, ratio in task["ratios"].items():
            least, order = ", at least" * ratio["at_least"], "recovered" if ratio["passed"] else "NOT recovered"
            made.add_row(*start, f"images, {pair}{least}", *_amount(ratio), order)
    return made


def _amount(found: dict[str, float | None]) -> tuple[str, str]:
    ends = ("?" if found[end] is None else f"{found[end]:,.3g}" for end in ("low", "high"))
    return f"{found['value']:,.3g}", " to ".join(ends)


if __name__ == "__main__":
    run_main(main)
