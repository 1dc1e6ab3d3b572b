"""Accuracy against time: latency, and images/s with and without the transfer, with references that were profiled."""

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from analysis.compare import fairness
from analysis.figures import looks, scatter
from analysis.report.page import Page, Section
from engine.cli import tables
from engine.errors import Refusal

PLACE, TITLE, SHORT = 20, "Accuracy against cost", "Cost"
COSTS = {"macs": "MACs per image"}
RATE = {"images_per_s": "images/s in training"}
SPEEDS = {  # of scripts/profile_model.py --results-file
    "latency_ms": "latency at batch 1, ms",
    "images_per_s_inference": "images/s in inference, images on the device",
    "images_per_s_with_copy": "images/s in inference, copied from the host",
}


def draw(page: Page) -> Section | None:
    if not page.finished:
        return None
    table, known, notes = page.ranked.assign(label=[page.label(rung) for rung in page.order]), dict(COSTS), []
    beside = pd.DataFrame()
    if page.speeds:
        measured = _speeds(page.speeds)
        names = page.frame.drop_duplicates("rung").set_index("rung")["name"]
        columns = [column for column in SPEEDS if column in measured and measured[column].notna().any()]
        table = table.assign(**{column: table["rung"].map(names).map(measured[column]) for column in columns})
        known |= {column: SPEEDS[column] for column in columns}
        beside = measured[~measured.index.isin(set(names))]
        notes.append(f"Times: {_device(measured)}.")
    else:
        how = "" if page.alone else f": `python scripts/profile_model.py --sweep {page.name}`"
        notes.append(f"No latencies were measured{how}.")
        try:
            fairness.one_machine(page.frame)
            known |= RATE
        except Refusal as error:
            notes.append(f"Images/s in training are not drawn: {error}.")
    own = {rung: page.look(rung) for rung in page.order}
    drawn = {
        cost: scatter.accuracy_cost(table, cost, label, own, page.keys, _costs(beside, cost))
        for cost, label in known.items()
        if (table[cost] > 0).any()
    }
    if not drawn:
        return None
    caption = "Filled and joined: the Pareto front of the means; intervals are not taken into account. "
    if len(beside):
        caption += "Upright lines: references that were profiled and not trained here. "
    figure = Markup('<div class="pareto">{}</div>').format(Markup("").join(map(Markup, drawn.values())))
    caption += f"{' '.join(notes)} {page.seeds(page.ranked['n'])}; {page.budget}"
    files = {f"accuracy-{cost}": scatter.standalone(svg, looks.css(False)) for cost, svg in drawn.items()}
    return Section("", figure, caption, files=files)


def _costs(beside: pd.DataFrame, cost: str) -> dict[str, float]:
    """Of the references, what is known of this cost."""
    return dict(beside[cost][beside[cost] > 0]) if cost in beside else {}


def _speeds(path: Path) -> pd.DataFrame:
    table = tables.read_frame(path, ["model"]).rename(columns={"images_per_s": "images_per_s_inference"})
    return table.drop_duplicates("model").set_index("model")


def _device(measured: pd.DataFrame) -> str:
    kinds = ", ".join(dict.fromkeys(map(str, measured["device"]))) if "device" in measured else "device not recorded"
    return f"of scripts/profile_model.py on {kinds}"
