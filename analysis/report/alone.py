"""The contrasts as a figure of its own, `figures/forest.svg` beside the page, for a README or a talk."""

import math

import pandas as pd

from analysis.factorial import columns
from analysis.figures import draw, forest
from analysis.figures.forest import Panel
from analysis.report.page import Page


def drawn(page: Page, asked: pd.DataFrame) -> str:
    """Accuracy, parameters, training loss, and where they were measured the same in another setting and the gap.

    Args:
        asked: `page.asked`, of one contrast at least.
    """
    panels = [
        Panel("accuracy", other.setting, columns.measure(asked, other.values))
        for other in page.beside
        if len(other.values)
    ]
    asked_of = {rung for weights in asked["weights"] for rung in weights}
    losses = page.frame[page.frame["acc1"].notna() & page.frame["rung"].isin(asked_of)]
    losses = losses.rename(columns={"train_loss": "value"})
    if losses["value"].notna().any():
        panels.append(
            Panel("training loss", "nats: difference", columns.measure(asked, losses[["rung", "seed", "value"]]))
        )
    if len(page.gaps):
        gaps = page.gaps.rename(columns={"gap": "value"})[["rung", "seed", "value"]]
        panels.append(Panel("permutation gap", "points: difference", columns.measure(asked, gaps)))
    params = page.table.set_index("rung")["params"]
    costs = [sum(weight * params[rung] for rung, weight in row.weights.items()) for row in asked.itertuples()]
    crossed = columns.is_interaction(asked)  # which has no side that is dearer
    costs = [math.nan if sideless else cost for cost, sideless in zip(costs, crossed, strict=True)]
    kept = [panel for panel in panels if panel.values["value"].notna().any()]
    said = f"{page.name}: what each of {len(asked)} contrasts changes in accuracy and in parameters"
    said += "".join(f", in {panel.title} ({panel.below})" for panel in kept)
    return draw.standalone(forest.forest(asked, costs, kept, said))
