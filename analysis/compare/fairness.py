"""Which rungs may be compared at equal cost: those of a sweep that share a budget of MACs, parameters or measured time.

A ladder cannot be of equal parameters and of equal MACs at once: a flat MLP does one MAC per parameter, a token model
one per parameter and token. So the kind of fairness is chosen by name, and the ladder is read at each.

Time is the latency of an image at batch 1, measured for all rungs on one device in one run: RESULTS/NAME/speeds.csv,
which scripts/profile_model.py --sweep NAME writes, or another such table. How fast the runs trained is no substitute:
that depends on batch size, loader and load.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.typeset import MISSING, Sheet, quantity
from engine.cli import tables
from engine.errors import DATA, Refusal
from engine.fields.sizes import text
from engine.folder.store import SPEEDS

KINDS = ("macs", "params", "time")
WORDS = {"macs": "MACs per image", "params": "parameters", "time": "latency per image"}
MACHINE = ("processor", "cores", "threads", "device")
TOLERANCE = 0.1


class Budget(NamedTuple):
    """What its members cost, the same but for the tolerance; the amount is that of one of them."""

    amount: float
    rungs: list[str]


def speeds_file(folders: Sequence[Path], given: Path | None = None) -> Path | None:
    """The latencies that equal time means: the table given, else the speeds.csv in a folder of the sweep, if any.

    Args:
        folders: of the sweeps, in the results and in the checkout; of one sweep's the first that has a table counts.

    Raises Refusal for a table that is not there, and where several sweeps have one each.
    """
    if given:
        if not given.is_file():
            raise Refusal(f"there is no {given}; python scripts/profile_model.py --sweep NAME writes one", DATA)
        return given
    first = {folder.name: folder / SPEEDS for folder in reversed(folders) if (folder / SPEEDS).is_file()}
    found = list(first.values())[::-1]
    if len(found) > 1:
        raise Refusal(f"{' and '.join(map(str, found))} were not measured together; name one by --speeds")
    return found[0] if found else None


def costs(frame: pd.DataFrame, kind: str, speeds: Path | None = None, sweep: str = "NAME") -> pd.Series:
    """Cost by rung, in order of appearance; NaN where it is not known yet. Times are in seconds.

    Raises Refusal for time without latencies, or with those of several devices or another image size.
    """
    groups = frame.groupby("rung", sort=False)
    if kind != "time":
        return groups[kind].first()
    if speeds is None:
        raise Refusal(
            f"no latencies of these rungs are known; python scripts/profile_model.py --sweep {sweep} measures them all "
            "(of other runs: MODEL... --results-file FILE.csv, then --speeds FILE.csv)"
        )
    table = _latencies(speeds)
    first = frame.drop_duplicates("rung").set_index("rung")
    if "img_size" in table:
        timed, size = first["name"].map(table["img_size"]), first["img_size"]
        other = timed.notna() & size.notna() & (timed.map(_pixels) != size.map(_pixels))
        for rung in first.index[other]:
            raise Refusal(
                f"{speeds} has {rung} at {_pixels(timed[rung])} px, its runs are of {_pixels(size[rung])} px; "
                "profile_model.py takes --img-size"
            )
    return first["name"].map(table["latency_ms"]) / 1e3


def _pixels(size: Any) -> str:
    """A size in a table, 32.0 or 32x64, as text; "" for none."""
    return "" if pd.isna(size) else text(size)


def one_machine(frame: pd.DataFrame) -> None:
    """Raise Refusal where the finished runs were trained on several machines, or on one that was not recorded."""
    timed = frame[frame["acc1"].notna() & frame["images_per_s"].notna()]
    machines = {_machine(env) for env in timed["env"]}
    if len(machines) > 1:
        listed = " | ".join(sorted(machines)[:3])
        raise Refusal(f"these runs were timed on {len(machines)} machines ({listed})")


def _machine(env: dict[str, Any]) -> str:
    """A kind of machine in words; of a GPU only the host is recorded."""
    if not env.get("processor"):
        raise Refusal("a run has no record of its machine (env.json), so its time compares with nothing", DATA)
    words = [str(env.get(key, "?")) for key in MACHINE]
    return ", ".join([*words, str(env.get("host"))] if str(env.get("device")).startswith("cuda") else words)


def _latencies(path: Path) -> pd.DataFrame:
    """The rows of a table of latencies, by model."""
    table = tables.read_frame(path)
    if missing := {"model", "device", "latency_ms"} - set(table.columns):
        raise Refusal(f"{path} lacks {', '.join(sorted(missing))}; profile_model.py --results-file writes them", DATA)
    if not pd.api.types.is_numeric_dtype(table["latency_ms"]):
        raise Refusal(f"{path}: not every latency_ms is a number", DATA)
    if table["device"].nunique() > 1:
        raise Refusal(f"{path} holds times of {table['device'].nunique()} devices; keep one")
    return table.drop_duplicates("model").set_index("model")


def budgets(amounts: pd.Series, names: pd.Series, tolerance: float = TOLERANCE) -> tuple[list[Budget], pd.DataFrame]:
    """The budgets that at least two rungs of different name share, dearest last; and the rungs that miss them all.

    A budget is the cost of the rung that has most others within `tolerance` of it; then the next among those left. The
    rungs that miss have columns rung, cost, budget (the nearest; NaN without one) and ratio (cost / budget).
    """
    left, found = amounts[amounts > 0].dropna(), []
    while len(left):
        near = {rung: left[(left / cost - 1).abs() <= tolerance] for rung, cost in left.items()}
        # Of equally many, the tightest; of equally tight, the cheapest.
        off = {rung: round(float(np.log(near[rung] / cost).abs().sum()), 9) for rung, cost in left.items()}
        best = min(near, key=lambda rung: (-names[near[rung].index].nunique(), off[rung], left[rung]))
        if names[near[best].index].nunique() < 2:
            break
        found.append(Budget(float(left[best]), [rung for rung in amounts.index if rung in near[best].index]))
        left = left.drop(near[best].index)
    found.sort(key=lambda budget: budget.amount)
    rows = []
    for rung in amounts.index[~amounts.index.isin([rung for budget in found for rung in budget.rungs])]:
        cost = float(amounts[rung])
        near = min((budget.amount for budget in found), key=lambda amount: abs(cost - amount), default=math.nan)
        rows.append({"rung": rung, "cost": cost, "budget": near if cost > 0 else math.nan})
    missed = pd.DataFrame(rows, columns=["rung", "cost", "budget"])
    return found, missed.assign(ratio=missed["cost"] / missed["budget"])


def fair(
    frame: pd.DataFrame, kind: str, tolerance: float = TOLERANCE, speeds: Path | None = None, sweep: str = "NAME"
) -> tuple[list[tuple[str, pd.DataFrame]], Sheet | None]:
    """The runs of each common budget, under a title; and the rungs that miss the budgets, with by how much."""
    names = frame.drop_duplicates("rung").set_index("rung")["name"]
    found, missed = budgets(costs(frame, kind, speeds, sweep), names, tolerance)
    parts = []
    for budget in found:
        title = f"At {amount_text(budget.amount, kind)} {WORDS[kind]} ± {tolerance:.0%}"
        parts.append((title, frame[frame["rung"].isin(budget.rungs)]))
    return parts, _missed(missed, kind) if len(missed) else None


def amount_text(amount: float, kind: str) -> str:
    """20.1 M, or 3.4 µs."""
    if kind != "time" or math.isnan(amount):
        return quantity(amount)
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms")) if amount >= s), (1e-6, "µs"))
    return f"{amount / scale:.3g} {unit}"


def _missed(missed: pd.DataFrame, kind: str) -> Sheet:
    rows = []
    for row in missed.itertuples():
        by = MISSING if math.isnan(row.ratio) else f"{row.ratio:.3g}×"
        rows.append([row.rung, amount_text(row.cost, kind), amount_text(row.budget, kind), by])
    header = ("rung", WORDS[kind], "nearest budget", "of it")
    return Sheet(f"Rungs that miss every budget of {WORDS[kind]}", header, rows, missed)
