"""Compare any runs: accuracies with intervals over seeds, ranks, differences to a baseline, what they do not show.

Each of WHAT is a sweep's name or file, a run's folder, or a folder that holds runs' folders.
"""

import argparse
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.errors import Refusal
from engine.folder import store
from engine.run import Run

PLANNED = "What the sweep was made to compare"
FORMS = ("markdown", "latex", "csv")


def main() -> None:
    given = parse()
    folders, runs, sweeps = find(given.what)

    # Imported late: pandas and SciPy take most of a second, which --help and a misspelt name need not wait for.
    from analysis import published
    from analysis.compare import contrasts, exponents, fairness, frames, samples

    frame = frames.load(folders, runs)
    parts, missed = [("", frame)], None
    if given.fair:
        speeds = (
            fairness.speeds_file([sweep.folder for sweep in sweeps], given.speeds) if given.fair == "time" else None
        )
        name = sweeps[0].name if sweeps else "NAME"
        parts, missed = fairness.fair(frame, given.fair, given.tolerance / 100, speeds, name)
        if not parts:
            raise Refusal(f"no two rungs are of equal {given.fair} within {given.tolerance:g} %; raise --tolerance")
    here = {*frame["name"], *frame["rung"]}
    named = tuple(name for sweep in sweeps for name in sweep.baseline if name in here)
    baseline = given.baseline or named or None
    if given.fair:
        tables = contrasts.tables([part for _, part in parts], baseline, given.margin)
    else:
        tables = [contrasts.against(frame, baseline, given.margin)]
    pairs = list(zip(tables, parts, strict=True))
    sheets: list[Any] = [contrasts.sheet(table, title, given.margin) for table, (title, _) in pairs]
    for sweep in () if given.fair else sweeps:
        if sweep.contrasts:  # of its own runs: other sweeps beside it change neither names nor conditions
            own = contrasts.registered(frames.load(sweep.folders, sweep.runs), sweep.contrasts, given.margin)
            title = PLANNED if len(sweeps) == 1 else f"What {sweep.name} was made to compare"
            sheets.append(contrasts.registered_sheet(own, title, given.margin))
    sheets += [missed, contrasts.unfinished(frame)]
    notes = [contrasts.power_note(part, table) for table, (_, part) in pairs]
    if given.samples is not None:
        sheets += samples.sheets(frame, given.baseline or next(iter(named), None), given.samples)
    if given.scaling:
        sheets += exponents.sheets(frame)
    if given.published:
        datasets = sorted(set(frame["dataset"].dropna()))
        sheets.append(published.sheet(datasets))
        notes += [] if sheets[-1] else [f"results/published/ holds no accuracy on {', '.join(datasets)}."]
    for sheet in filter(None, sheets):
        if given.form:
            print(getattr(sheet, given.form)())
        else:
            show(sheet.rich())
    if not given.form:
        print(*notes, sep="\n")


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/compare.py", description=__doc__)
    parser.add_argument("what", nargs="+", metavar="WHAT", help="sweep, run folder, or folder of run folders")
    parser.add_argument(
        "--baseline",
        metavar="RUNG",
        help="what all others are compared with (default: BASELINE of the sweep; else the first, with --fair none)",
    )
    parser.add_argument("--margin", type=_positive, default=0.5, help="points within which rungs count as equal")
    parser.add_argument("--fair", choices=("macs", "params", "time"), help="a table for each budget that rungs share")
    parser.add_argument("--tolerance", type=_positive, default=10.0, help="for --fair: percent off the budget")
    parser.add_argument(
        "--speeds",
        type=Path,
        metavar="CSV",
        help="for --fair time (default: the sweep's speeds.csv of profile_model.py)",
    )
    parser.add_argument(
        "--samples", nargs="*", type=float, metavar="LEVEL", help="data-equivalents at these accuracies (or some)"
    )
    parser.add_argument("--scaling", action="store_true", help="fit error against training compute")
    parser.add_argument("--published", action="store_true", help="also what others report on these data, apart")
    for form in FORMS:
        parser.add_argument(f"--{form}", dest="form", action="store_const", const=form, help="print in this form")
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")
    given = parser.parse()
    if given.speeds and given.fair != "time":
        raise Refusal("--speeds is for --fair time")
    return given


def find(what: list[str]) -> tuple[list[Path], list[Run | None], list[Any]]:
    """Folders of runs, each once, with their runs where a sweep tells them; and the sweeps
    (slurm.define.sweep.Sweep)."""
    from slurm.define import load

    found: dict[str, tuple[Path, Run | None]] = {}
    sweeps: dict[str, Any] = {}
    for word in what:
        if Path(word).is_dir() and word not in load.names():
            pairs = _of_folder(Path(word))
        else:
            named = load.load(word)
            sweeps[named.name] = named
            pairs = list(zip(named.folders, named.runs, strict=True))
        for folder, run in pairs:
            found.setdefault(folder.name, (folder, run))
    return [folder for folder, _ in found.values()], [run for _, run in found.values()], list(sweeps.values())


def _of_folder(folder: Path) -> list[tuple[Path, Run | None]]:
    if (folder / "args.yaml").exists():
        return [(folder, None)]
    inside = [path.parent for path in folder.glob("*/args.yaml")]
    if inside:  # by model and seed: a folder begins with a hash
        return [(path, None) for path in sorted(inside, key=lambda path: path.name.partition("-")[::-1])]
    raise Refusal(f"{folder} is no run's folder and holds none; runs lie in {store.results_dir() / 'runs'}")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0 and below 100")
    return value


if __name__ == "__main__":
    run_main(main)
