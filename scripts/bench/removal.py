"""What removing the mixing of trained models costs: one table of criteria, ways and shares, before and after healing.

    python scripts/bench/removal.py removal --speed -b 1 8 64    # first, on a machine that is idle: images a second
    python scripts/bench/removal.py removal

Reads a sweep whose runs start from other runs without some of their mixing (slurm/define/removal.py), and the choices
of layers beside its results. Measures, in float32, each source, each start before any healing and each finished run:
accuracy on all test images and, on 2,000 of them, the headlines of patch shuffle and shift; of starts by criteria that
no run heals, accuracy alone. What is measured is kept (before.csv), so that the command can be stopped and repeated,
and repeated in a clone, which has no weights; it shows what is there. Writes removal.csv and removal.svg beside them.
ASKED of the sweep's file names the criteria of its claims, SOURCES_BELOW what its sources must be below.
"""

from typing import Any

from engine.cli.flags import Parser, add_fields, run_main, show
from engine.cli.numbers import percent, whole
from engine.cli.tables import table, write
from engine.errors import Refusal
from engine.run import How, make_how


def main() -> None:
    parser = Parser(prog="scripts/bench/removal.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("sweep", help="whose runs heal")
    parser.add_argument(
        "--margin", type=percent, default=0.5, metavar="POINTS", help="points within which a difference is none"
    )
    parser.add_argument("--speed", action="store_true", help="time the models instead: removal_speeds.csv")
    parser.add_argument("-b", "--batch-size", type=whole(1), nargs="+", default=[1, 8, 64], help="for --speed")
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    given = parser.parse()
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})

    import logging

    from analysis.figures import draw, removal_figures
    from analysis.removal import bench, measured
    from engine.folder import files
    from slurm.define import removal
    from slurm.define.load import load

    logging.getLogger("softmlp").setLevel(logging.ERROR)  # every start leaves weights out, as it is meant to
    sweep = load(given.sweep)
    for run in sweep.runs:
        if "mlp_layers" not in run.final_kwargs or not (run.initial_identity or "").startswith("run:"):
            raise Refusal(f"{run.name} of {sweep.name} starts from no run without mixing; see slurm/sweeps/removal.py")
    if given.speed:
        rows = measured.speeds(sweep.runs, given.batch_size, how)
        write(sweep.folder / measured.SPEEDS, rows)
        show(table(rows))
        return
    known, _ = removal.table(sweep.name)
    ours = {run.signature for run in sweep.runs}
    starts = [*sweep.runs, *(run for run in removal.dropped(sweep.runs, known) if run.signature not in ours)]
    rows = measured.rows(
        [(run, removal.way_of(run), run.signature in ours) for run in starts], known, sweep.folder, how
    )
    meant = stated(sweep.name, "ASKED", ())
    rows = [{**row, "claimed": not meant or row["criterion"] in (*meant, bench.EVERY)} for row in rows]
    write(sweep.folder / "removal.csv", rows)
    frame = bench.table(rows)
    figure = sweep.folder / "removal.svg"
    files.write_bytes(figure, draw.standalone(removal_figures.bench(frame)).encode())
    for sheet in (bench.sheet(frame), bench.effect_sheet(frame, given.margin)):
        show(table([dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]))
    print(*sources(rows, stated(sweep.name, "SOURCES_BELOW", {})), sep="\n")
    done = sum(row.get("acc_after") is not None for row in rows)
    print(f"{len(rows)} rows, {done} of them healed: {sweep.folder / 'removal.csv'}; figure: {figure}")


def stated(name: str, what: str, otherwise: Any) -> Any:
    """What a committed study's file says of itself; `otherwise` for another sweep, or where it does not."""
    import importlib

    from slurm.define.load import names

    return getattr(importlib.import_module(f"slurm.sweeps.{name}"), what, otherwise) if name in names() else otherwise


def sources(rows: list[dict[str, Any]], bounds: dict[str, float]) -> list[str]:
    """Whether the models that mixing is taken from are what the study is about: below these bounds, each of them."""
    lines = []
    for key, bound in bounds.items():
        found = {row["seed"]: row[f"{key} whole"] for row in rows}
        over = [f"seed {seed}" for seed, value in found.items() if value is None or not value < bound]
        told = ", ".join("?" if value is None else f"{value:.3g}" for value in found.values())
        verdict = f"not below {bound:g}: {', '.join(over)}" if over else f"all below {bound:g}"
        lines.append(f"sources: {key} {told}; {verdict}")
    return lines


if __name__ == "__main__":
    run_main(main)
