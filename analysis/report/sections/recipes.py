"""Recipes: where rates or decays were varied within a rung, the best of them, and what lies at an edge."""

import pandas as pd
from markupsafe import Markup

from analysis import judges
from analysis.compare import tuning
from analysis.figures.draw import standalone
from analysis.report.page import Page, Section
from analysis.report.tables import shown
from engine.fields.rungs import DATA, RECIPE, text

PLACE, TITLE, SHORT = 60, "Recipes that were tried", "Recipes"
MAPS = 12  # heat maps on a page


def draw(page: Page) -> Section | None:
    known = page.frame[page.frame["epochs"].notna()]
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
    maps = {f"tuning-{i}": tuning.heat_map(cells, win.model, axes, kind) for i, win in enumerate(best[:MAPS])}
    drawn = {key: svg for key, svg in maps.items() if svg}
    figure = Markup('<div class="maps">{}</div>').format(Markup("").join(map(Markup, drawn.values())))
    files = {key: standalone(svg) for key, svg in drawn.items()}
    said = " ".join(f"`{win.model}`: {edge}." for win in best for edge in win.edges)
    return Section(said, figure if drawn else Markup(), page.budget, [shown("tuning", tuning.sheet(best, kind))], files)
