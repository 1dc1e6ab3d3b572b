"""What others report of these models on the same data; never mixed with ours."""

import re
from dataclasses import replace

from analysis import published
from analysis.compare.frames import REFERENCE
from analysis.report.page import Page, Section
from analysis.report.tables import shown

PLACE, TITLE, SHORT = 70, "What others report of these models", "Published"
SAID = "On the same data, but with other recipes, sizes and seeds. Nothing else on this page is computed from it."


def draw(page: Page) -> Section | None:
    frame = page.frame
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
    sheet = replace(sheet, rows=[sheet.rows[i] for i in kept], data=sheet.data.iloc[kept])
    return Section(SAID, tables=[shown("published", sheet)])


def family_of(model: str) -> str:
    """The family that a published name would have here: Mixer-B/16 and MLP-Mixer are mixer, B-MLP is bmlp."""
    name = re.sub(r"^mlp-(?=mixer)", "", model.lower())
    name = re.sub(r"^([a-z]\d?)-(?=mlp)", r"\1", name)
    head = re.split(r"[-/ ]", name)[0]
    return "mlp" if head.endswith("layermlp") or head == "smlp" else head


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
