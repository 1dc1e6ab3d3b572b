"""The report in a real browser: its first screen answers, all of it is seen, and it asks for nothing.

Needs a Chromium (make test installs Debian's); without one these tests are skipped, which CI takes for a failure.
"""

import os
from pathlib import Path

import pytest

from analysis.bias import symmetry
from analysis.report.assemble import write_report
from engine.fields.claims import Contrast, Family
from engine.folder import published
from engine.folder.store import csv_text, write_json
from engine.run import make_run
from tests import browser
from tests.reports import write_run

ROOT = Path(__file__).parents[2]
CELLS = {
    name: {"mixer": name} for name in ("dense", "dense_c", "toeplitz", "toeplitz_c", "banded", "banded_c", "kernel")
}
CELLS |= {name: {"mixer": name} for name in ("depthwise", "none", "pooling", "two", "token_mlp", "gate", "axial")}
CELLS |= {name: {"mixer": name} for name in ("circulant_c", "distance", "attention", "attention_window")}
CELLS |= {"frozen": {"mixer": "dense", "frozen": True}, "scrambled": {"mixer": "kernel", "scrambled": True}}
MOST_BYTES, MOST_PIXELS = 400_000, 8_000  # of the page of a sweep of 20 cells


@pytest.fixture(scope="module")
def chromium():
    if browser.path() is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"the report was not opened in a browser: no {' or '.join(browser.NAMES)} (apt-get install chromium)")
    with browser.Browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Twenty cells of the lattice, three seeds, probed, two of these shuffled, too; 19 contrasts in two families."""
    results = tmp_path_factory.mktemp("results")
    folders, rungs, signed = [], {}, []
    for place, (cell, arguments) in enumerate(CELLS.items()):
        for seed in range(3):
            for permute in ("none", "pixels")[: 1 + (seed < 2)]:
                fields = {"model": "lattice_nano", "model_kwargs": arguments, "seed": seed, "epochs": 10}
                run = make_run(fields | {"permute": permute})
                rungs[cell] = f"{run.rung} permute=none"
                acc1 = 60 + place + 0.3 * ((seed * place) % 3) - place / 2 * (permute == "pixels")
                folders.append(write_run(results, run, acc1))
                if permute == "none":
                    keys = {"acc": acc1, "acc_1": acc1 / 2 + place, "acc_2": acc1 / 3, "consistency_1": 50.0 + place}
                    values = {key: {"value": v, "low": v - 2, "high": v + 2, "null": 10.0} for key, v in keys.items()}
                    (folders[-1] / "probes").mkdir()
                    write_json(folders[-1] / "probes" / "shift.json", {"probe": "shift", "values": values})
        kinds = [f"{key}={run.model_kwargs[key]}" for key in sorted(run.model_kwargs)]
        gaps = {group: 1e-16 if (place + i) % 3 else 1.0 for i, group in enumerate(symmetry.GROUPS)}
        signed.append({"model": " ".join(["lattice_nano", *kinds]), "opt": run.opt, **gaps, "log10_size": 9.0})
    (results / "tried").mkdir()
    (results / "tried" / "symmetry.csv").write_text(csv_text(signed))  # measuring them takes a minute
    pairs = list(zip(CELLS, list(CELLS)[1:], strict=False))
    made = {f"{a} to {b}": Contrast({rungs[b]: 1, rungs[a]: -1}) for a, b in pairs}
    families = {"first": Family(dict(list(made.items())[:9]), 1.0), "second": Family(dict(list(made.items())[9:]), 0.5)}
    return write_report("tried", folders, results, question="What is seen of twenty cells?", families=families)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """The published ladder, from its tables alone."""
    results = tmp_path_factory.mktemp("ladder")
    study = published.study("ladder", ROOT / "results")
    told = {"planned": study.contrasts, "baseline": study.baseline, "labels": study.labels, "study": study}
    return write_report("ladder", [], results, study.question, **told)


@pytest.fixture
def page(chromium, report):
    return chromium.open(report.as_uri(), width=1280)


def bottoms(page, selector):
    """Where elements end, in pixels from the top of the page."""
    return page.run(f"[...document.querySelectorAll('{selector}')].map(one => one.getBoundingClientRect().bottom)")


@pytest.mark.parametrize("which, contrasts", [("report", 19), ("ladder", 14)])
def test_the_first_screen_holds_question_sentences_and_every_contrast(chromium, request, which, contrasts):
    """At 1280 x 800 without scrolling: the axis below the last contrast is seen, and nothing of it is cut."""
    page = chromium.open(request.getfixturevalue(which).as_uri(), width=1280)
    assert page.run("document.querySelectorAll('h1').length") == 1
    assert len(bottoms(page, ".card:not(.crossed)")) == 3 and max(bottoms(page, ".card")) < 250
    rows = bottoms(page, ".fr:not(.head):not(.foot)")
    assert len(rows) == contrasts and max(bottoms(page, ".fr.foot")) <= 800
    assert page.run("document.querySelector('.fr').querySelectorAll('.mini').length") >= 2, "gap and probes beside it"
    named = "[...document.querySelectorAll('.lab b, .chip, .val, .names span')]"
    cut = f"{named}.filter(one => one.clientWidth && one.scrollWidth > one.clientWidth + 1)"
    assert page.run(f"{cut}.map(one => one.textContent)") == []
    overlap = """[...document.querySelectorAll('.fr')].filter(row => { const lab = row.querySelector('.lab'),
        acc = row.querySelector('.acc'); return lab && acc && [...lab.querySelectorAll('b, .chip')].some(one =>
        one.getBoundingClientRect().right > acc.getBoundingClientRect().left + 1) }).length"""
    assert page.run(overlap) == 0, "a label runs into the plot"


@pytest.mark.parametrize("which", ["report", "ladder"])
def test_the_page_is_short_and_light(chromium, request, which):
    path = request.getfixturevalue(which)
    assert path.stat().st_size < MOST_BYTES
    page = chromium.open(path.as_uri(), width=1280)
    assert page.run("document.documentElement.scrollHeight") < MOST_PIXELS


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_seen_and_nothing_is_asked_for(chromium, report, width, dark):
    page = chromium.open(report.as_uri(), width=width, dark=dark)
    assert page.faults() == []
    assert page.requests() == [report.as_uri()]
    assert page.run("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    sizes = page.run("[...document.querySelectorAll('figure')].map(one => one.getBoundingClientRect().height)")
    assert len(sizes) >= 6 and min(sizes) > 60
    paper, text = (
        [int(part) for part in page.run(f"getComputedStyle(document.body).{key}").strip("rgb()").split(",")]
        for key in ("backgroundColor", "color")
    )
    assert (sum(paper) < 200 < 500 < sum(text)) if dark else (sum(text) < 200 < 500 < sum(paper))
    look = "getComputedStyle(one).fill + one.getAttribute('href')"
    marks = page.run(f"[...document.querySelectorAll('#accuracy .names use')].map(one => {look})")
    assert len(set(marks)) == len(CELLS), "each cell looks like no other"


def test_pointing_at_a_rung_and_focusing_it_marks_it_everywhere(page):
    hot = "[...document.querySelectorAll('.hot')].map(one => (one.closest('section') || one).id)"
    assert page.run(hot) == []
    page.run("document.querySelector('#accuracy .names li').focus()")
    sections = {"asked", "accuracy", "pareto", "built", "learned", "curves", "health", "reproduce"}
    assert set(page.run(hot)) >= sections
    page.run("document.activeElement.blur()")
    assert page.run(hot) == []
    over = "new PointerEvent('pointerover', {bubbles: true})"
    page.run(f"document.querySelector('#curves [data-r]').dispatchEvent({over})")
    assert set(page.run(hot)) >= sections
    page.run("document.querySelector('#curves [data-r]').click()")
    assert "is marked; Escape lets go" in page.run("document.getElementById('pinned').textContent")
    page.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert page.run(hot) == [] and page.run("document.getElementById('pinned').textContent") == ""


def test_figures_say_what_a_point_is(page):
    titles = page.run("[...document.querySelectorAll('#pareto title')].map(title => title.textContent)")
    assert any("mixer=kernel" in title and "MACs" in title and "n = 3" in title for title in titles)


def test_tables_are_folded_and_sort_by_number_and_back_by_place(page):
    assert page.run("document.querySelectorAll('details[open]').length") == 0
    assert page.run("[...document.querySelectorAll('table')].every(one => one.closest('details'))")
    cells = "[...document.querySelectorAll('#rungs tbody tr')].map(row => row.cells[5].textContent.trim())"
    numbers = [float(text.split()[0]) for text in page.run(cells)]
    button = "document.querySelector('#rungs thead th:nth-child({}) button').click()"
    page.run(button.format(6))
    assert [float(text.split()[0]) for text in page.run(cells)] == sorted(numbers)
    page.run(button.format(6))
    assert [float(text.split()[0]) for text in page.run(cells)] == sorted(numbers, reverse=True)
    page.run(button.format(1))
    assert [float(text.split()[0]) for text in page.run(cells)] == numbers, "the order of the file is back"


def test_it_prints_without_its_folds(page):
    page.call("Emulation.setEmulatedMedia", media="print")
    folds = "[...document.querySelectorAll('details')].filter(one => {}one.closest('section').querySelector('figure'))"
    shown = ".map(one => one.checkVisibility({contentVisibilityAuto: true}))"
    assert not any(page.run(folds.format("") + shown)), "a figure says it already"
    assert all(page.run(folds.format("!") + shown)), "a table that is all there is"
    assert page.run("document.querySelector('.forest').getBoundingClientRect().height") > 100
    assert len(page.call("Page.printToPDF", preferCSSPageSize=True)["data"]) > 10_000
