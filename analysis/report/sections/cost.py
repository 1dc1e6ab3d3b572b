"""What the report says of cost and of certainty: fair budgets, paired differences, cost, recipes, publications."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis import judges, published
from analysis.compare import contrasts, fairness, tuning
from analysis.compare.frames import REFERENCE
from analysis.figures import draw
from analysis.report.tables import DRAWN, Shown, limited, shown
from engine.cli import tables
from engine.errors import Refusal
from engine.fields.rungs import DATA, RECIPE, text

MAPS = 12  # heat maps on a page
BUDGETS = 6  # tables per kind of fairness
COSTS = {"macs": "MACs per image", "params": "parameters"}
RATE = {"images_per_s": "images/s in training"}
SPEEDS = {  # of scripts/profile_model.py --results-file
    "latency_ms": "latency at batch 1, ms",
    "images_per_s_inference": "images/s in inference, images on the device",
    "images_per_s_with_copy": "images/s in inference, copied from the host",
}


def differences(frame: pd.DataFrame, table: pd.DataFrame, baseline: Sequence[str] = ()) -> tuple[Shown, str, int]:
    """All rungs against the baseline: table, what so many seeds can show, and how many rungs were left out.

    Of very many rungs the most accurate take part, and the baseline.

    Args:
        baseline: BASELINE of the sweep; without one, the first rung, which the page then says.
    """
    part, first = frame, table["rung"].iloc[0]
    if (over := len(table) - DRAWN) > 0:
        ranked = table.sort_values("acc1", ascending=False, kind="stable")["rung"]
        kept = frame["rung"].isin(ranked[: DRAWN - 1]) | frame["rung"].isin(baseline) | frame["name"].isin(baseline)
        part = frame[kept if baseline else kept | (frame["rung"] == first)]
    against = contrasts.against(part, baseline or None)
    chosen = set(against["baseline"]) - {""}
    names = dict.fromkeys(part.loc[part["rung"].isin(chosen), "name"])
    sheet = contrasts.sheet(against, f"Differences to {', '.join(names)}{'' if baseline else ', the first rung'}")
    return shown("differences", sheet), contrasts.power_note(part, against), max(over, 0)


def planned(frame: pd.DataFrame, wanted: Mapping[str, Mapping[str, float]]) -> Shown:
    """The contrasts that the sweep was made for."""
    return shown("planned", contrasts.registered_sheet(contrasts.registered(frame, wanted)))


def fair(
    frame: pd.DataFrame, speeds: Path | None, name: str, baseline: Sequence[str] = ()
) -> tuple[dict[str, list[Shown]], list[str]]:
    """Per kind of fairness a table for each budget that rungs share; and what could not be compared, and why.

    A budget that holds no baseline of the sweep's has accuracies and ranks, and no differences.
    """
    found, notes = {}, []
    if frame["acc1"].isna().all():
        return {}, []
    frame = limited(frame, "rung", 2 * DRAWN)
    for kind in fairness.KINDS:
        try:
            parts, missed = fairness.fair(frame, kind, speeds=speeds, sweep=name)
        except Refusal as error:
            notes.append(f"Not at equal {fairness.WORDS[kind]}: {error}.")
            continue
        parts = [(title, part) for title, part in parts if part["acc1"].notna().any()]
        if not parts:
            notes.append(f"No two rungs are of equal {fairness.WORDS[kind]}, to {fairness.TOLERANCE:.0%}.")
            continue
        if len(parts) > BUDGETS:
            notes.append(f"Of {len(parts)} budgets of {fairness.WORDS[kind]} the {BUDGETS} dearest are shown.")
        shared = [part for _, part in parts[-BUDGETS:]]
        here = {name for part in shared for name in (*part["name"], *part["rung"])}
        tables = contrasts.tables(shared, [name for name in baseline if name in here])
        sheets = [contrasts.sheet(table, title) for table, (title, _) in zip(tables, parts[-BUDGETS:], strict=True)]
        found[kind] = [
            shown(f"fair-{kind}-{i}", sheet) for i, sheet in enumerate([*sheets, *([missed] * bool(missed))])
        ]
    return found, notes


def cost_figures(frame: pd.DataFrame, table: pd.DataFrame, speeds: Path | None) -> tuple[dict[str, str], list[str]]:
    """Accuracy against each cost that is known, as figures by name; and what is missing, and why."""
    notes, known = [], dict(COSTS)
    try:
        fairness.one_machine(frame)
        known |= RATE
    except Refusal as error:
        notes.append(f"Images/s are not drawn: {error}.")
    if speeds:
        names = frame.drop_duplicates("rung").set_index("rung")["name"]
        measured = tables.read_frame(speeds, ["model"]).rename(columns={"images_per_s": "images_per_s_inference"})
        measured = measured.drop_duplicates("model").set_index("model")
        columns = [column for column in SPEEDS if column in measured and measured[column].notna().any()]
        table = table.assign(**{column: table["rung"].map(names).map(measured[column]) for column in columns})
        known |= {column: SPEEDS[column] for column in columns}
    drawn = {}
    for cost, label in known.items():
        if (table["acc1"].notna() & (table[cost] > 0)).any():
            drawn[cost] = draw.accuracy_cost(table, cost, label, families=frame["family"])
    return drawn, notes


def tuned(frame: pd.DataFrame) -> tuple[Shown, list[str], list[str]] | None:
    """Where learning rate or weight decay was varied within rungs: the best cells, heat maps, warnings of edges."""
    known = frame[frame["epochs"].notna()]
    # All that varies within a rung is an axis, or accuracies of different recipes would be averaged; but accuracies on
    # different data are those of different tables, and a longer run is the same cell further on.
    recipe = [field for field in RECIPE if field not in (*DATA, "epochs")]
    told = known[recipe].map(str).assign(name=known["name"])
    varied = told.groupby("name", sort=False)[recipe].nunique().max() if len(known) else pd.Series(0, recipe)
    axes = sorted((field for field in recipe if varied[field] > 1), key=lambda field: field not in tuning.AXES)
    if not {"lr", "weight_decay"} & set(axes):
        return None
    same = {field: known[field].map(str).nunique() < 2 for field in DATA}
    data = [" ".join(f"{key}={text(row[key])}" for key in DATA if not same[key]) for row in known.to_dict("records")]
    models = [f"{name} {words}".strip() for name, words in zip(known["name"], data, strict=True)]
    rows = known.assign(model=models)[["model", "signature", "state", "acc1", "epochs", "seed", *axes]]
    # A list of pandas' is no key.
    rows = rows.map(lambda value: tuple(value) if isinstance(value, list) else value)
    cells = tuning.cells(rows.to_dict("records"), axes)
    if not (best := tuning.winners(cells, axes, {})):
        return None
    kind = judges.kind(known["holdout"])
    maps = [tuning.heat_map(cells, win.model, axes, kind) for win in best[:MAPS]]
    warnings = [f"`{win.model}`: {edge}." for win in best for edge in win.edges]
    return shown("tuning", tuning.sheet(best, kind)), [svg for svg in maps if svg], warnings


def reported(frame: pd.DataFrame) -> Shown | None:
    """What others report of the models of this sweep on the same data; never mixed with ours."""
    sheet = published.sheet(sorted(set(frame["dataset"].dropna())))
    if sheet is None:
        return None
    families = set(frame["family"]) - {REFERENCE}
    references = {_letters(model) for model in frame["model"] if model.startswith("timm/")}
    kept = [
        place
        for place, model in enumerate(sheet.data["model"])
        if family_of(model) in families or _letters(f"timm/{model}") in references
    ]
    if not kept:
        return None
    return shown("published", replace(sheet, rows=[sheet.rows[i] for i in kept], data=sheet.data.iloc[kept]))


def family_of(model: str) -> str:
    """The family that a published name would have here: Mixer-B/16 and MLP-Mixer are mixer, B-MLP is bmlp."""
    name = re.sub(r"^mlp-(?=mixer)", "", model.lower())
    name = re.sub(r"^([a-z]\d?)-(?=mlp)", r"\1", name)
    head = re.split(r"[-/ ]", name)[0]
    return "mlp" if head.endswith("layermlp") or head == "smlp" else head


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
