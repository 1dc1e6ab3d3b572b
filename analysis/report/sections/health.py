"""How the sweep went, what it cost, and what these runs do not show."""

import pandas as pd
from markupsafe import Markup

from analysis import judges
from analysis.bias import signatures
from analysis.compare.frames import UNREADABLE
from analysis.report.page import Page, Section
from analysis.report.parts import div, icon
from analysis.report.sentences import self_test_sentence, undecided
from analysis.report.tables import shown, unfinished
from engine.folder.store import DONE, FAILED

PLACE, TITLE, SHORT = 80, "How the sweep went, and what it cost", "Health"


def draw(page: Page) -> Section:
    frame = page.frame
    passed, verdict = self_test_sentence(signatures.self_test(page.results))
    notes = " ".join(undecided(frame, page.table, page.label))
    said = f"{notes} {verdict}" if passed is not False else notes
    missing = unfinished(frame)
    tables = [shown("unfinished", missing)] if missing else []
    kinds = ", on whole and shuffled images" if (frame["permute"] != "none").any() else ""
    caption = f"Minutes per rung, all its seeds{kinds}, evaluation included; {page.machine}."
    return Section(said, _tiles(page) + _bars(page), caption, tables)


def _tiles(page: Page) -> Markup:
    frame = page.frame
    seconds, attempts = frame["seconds"].dropna(), frame["attempt"].dropna()
    done, failed = int((frame["state"] == DONE).sum()), int(frame["state"].isin([FAILED, UNREADABLE]).sum())
    tiles = [(f"{done:,} / {len(frame):,}", "runs done", f"{failed or 'none'} failed")]
    if len(seconds):
        tiles.append((f"{seconds.sum() / 3600:.1f} h", "of training", f"median {seconds.median():.0f} s a run"))
    if len(attempts):
        again = int((attempts > 1).sum())
        tiles.append((f"{again:,}", "restarted", f"{attempts.sum():.0f} attempts, most in one: {attempts.max():.0f}"))
    shuffled = set(frame.loc[frame["permute"] != "none", "rung"])
    counts = page.table.loc[~page.table["rung"].isin(shuffled), "n"]
    more = f"and {len(shuffled)} on shuffled images" if shuffled and len(counts) else "finished"
    counts = counts if len(counts) else page.table["n"]
    ends = " to ".join(dict.fromkeys((str(counts.min()), str(counts.max()))))
    tiles.append((f"{len(counts):,} × {ends}", "rungs × seeds", more))
    if size := _judged(frame):
        tiles.append((f"{size:,}", judges.kind(frame["holdout"]), "judge a run"))
    tile = Markup("<div><b>{}</b><span>{}</span><small>{}</small></div>")
    return div("tiles", *(tile.format(*each) for each in tiles))


def _judged(frame: pd.DataFrame) -> int | None:
    known = frame.dropna(subset=["dataset", "holdout"]).drop_duplicates(["dataset", "holdout"])
    sizes = {judges.count(str(row.dataset), float(row.holdout)) for row in known.itertuples()}
    return sizes.pop() if len(sizes) == 1 else None


def _bars(page: Page) -> Markup:
    """Minutes by rung, whole and shuffled together."""
    known = page.frame.dropna(subset="seconds")
    if known.empty:
        return Markup()
    minutes = (known.groupby("name", sort=False)["seconds"].sum() / 60).sort_values(ascending=False)
    first = known.drop_duplicates("name").set_index("name")["rung"]
    line = Markup(
        '<li class="k-{}" data-r="{}" title="{}"><span>{} {}</span>'
        '<i><u style="width:{:.1f}%"></u></i><b>{} min</b></li>'
    )
    lines = []
    for name, value in minutes.items():
        rung = next(
            (rung for rung in page.order if rung.startswith(name) and page.key(rung) == page.key(first[name])),
            first[name],
        )
        look = page.look(rung)
        text = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
        lines.append(
            line.format(
                look.kind, page.key(rung), name, icon(look), page.label(rung), 100 * value / minutes.max(), text
            )
        )
    return Markup('<ul class="bars">{}</ul>').format(Markup("").join(lines))
