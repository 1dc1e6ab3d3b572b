"""The report in a real browser: all of it is seen, in light and dark, on wide and narrow screens; it asks for nothing.

Needs a Chromium (make test installs Debian's); without one these tests are skipped, which CI takes for a failure.
"""

import os

import pytest

from analysis.report.assemble import write_report
from engine.folder.store import write_json
from engine.run import make_run
from tests import browser
from tests.reports import write_run

LEVELS = {"mlp_nano": 97.0, "mixer_nano": 93.0, "convmixer_nano": 98.0, "deit_nano": 91.0, "gmlp_nano": 95.0}
LEVELS |= {"timm/resnet18": 96.0}
TABLES = ("symmetry", "ladder", "probe-shift", "gap", "rungs", "differences", "runs")


@pytest.fixture(scope="module")
def chromium():
    if browser.path() is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"the report was not opened in a browser: no {' or '.join(browser.NAMES)} (apt-get install chromium)")
    with browser.Browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Six rungs, two seeds, probed, and trained on shuffled pixels, too."""
    results = tmp_path_factory.mktemp("results")
    folders = []
    for place, (model, level) in enumerate(LEVELS.items()):
        for seed in range(2):
            for permute in ("none", "pixels"):
                fields = {"model": model, "seed": seed, "epochs": 3, "permute": permute}
                acc1 = level + 0.3 * seed * place - 5 * place * (permute == "pixels")
                run = make_run(fields)
                folders.append(write_run(results, run, acc1))
                if permute == "none":
                    keys = {"acc": acc1, "acc_1": acc1 / 2, "acc_2": acc1 / 3, "consistency_1": 50.0 + place}
                    values = {key: {"value": v, "low": v - 2, "high": v + 2, "null": 10.0} for key, v in keys.items()}
                    (folders[-1] / "probes").mkdir()
                    write_json(folders[-1] / "probes" / "shift.json", {"probe": "shift", "values": values})
    return write_report("tried", folders, results, question="What is seen?")


@pytest.fixture
def page(chromium, report):
    return chromium.open(report.as_uri(), width=1280)


def column(page, table, number):
    """The cells of a column that are shown, from top to bottom."""
    rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => !row.hidden)"
    return page.run(f"{rows}.map(row => row.cells[{number}].innerText.trim())")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_everything_is_seen_and_nothing_is_asked_for(chromium, report, width, dark):
    page = chromium.open(report.as_uri(), width=width, dark=dark)
    assert page.faults() == []
    assert page.requests() == [report.as_uri()]
    assert page.run("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    boxes = page.run("[...document.querySelectorAll('svg.figure')].map(svg => svg.getBoundingClientRect().toJSON())")
    assert len(boxes) == 6, "probe, gaps, ladder, two costs, curves"
    assert all(box["width"] >= 500 and box["height"] >= 100 for box in boxes)
    ink = "[...document.querySelectorAll('svg.figure')].every(svg => svg.querySelectorAll('path, use').length > 10)"
    assert page.run(ink)
    paper, text = (
        [int(part) for part in page.run(f"getComputedStyle(document.body).{key}").strip("rgb()").split(",")]
        for key in ("backgroundColor", "color")
    )
    assert (sum(paper) < 200 < 500 < sum(text)) if dark else (sum(text) < 200 < 500 < sum(paper))
    # Figures take the page's ink and a family's own colour on this paper.
    axis = "getComputedStyle(document.querySelector('svg.figure text')).color"
    assert page.run(axis) == page.run("getComputedStyle(document.body).color")
    spots = page.run("[...document.querySelectorAll('#rungs .dot')].map(dot => getComputedStyle(dot).backgroundColor)")
    assert len(set(spots)) == len(LEVELS)


def test_figures_say_what_a_point_is(page):
    titles = page.run("[...document.querySelectorAll('#accuracy ~ figure title')].map(title => title.textContent)")
    assert any(title.startswith("mixer_nano") and "accuracy 93." in title and "MACs" in title for title in titles)
    bars = page.run("[...document.querySelectorAll('#learned ~ figure title')].map(title => title.textContent)")
    assert any(title.startswith("deit_nano") and "by chance 10.00" in title for title in bars)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_there_with_its_tools(page, table):
    assert page.run(f"document.getElementById('{table}').tBodies[0].rows.length") >= len(LEVELS)
    assert page.run(f"document.querySelectorAll('[data-copy^=\"{table}-\"]').length") >= 3


def test_columns_sort_up_and_down_by_number_and_back_by_place(page):
    accuracies = [float(text.split()[0]) for text in column(page, "rungs", 6)]
    page.run("document.querySelector('#rungs thead th:nth-child(7) button').click()")
    assert [float(text.split()[0]) for text in column(page, "rungs", 6)] == sorted(accuracies)
    assert page.run("document.querySelector('#rungs thead th:nth-child(7)').ariaSort") == "ascending"
    page.run("document.querySelector('#rungs thead th:nth-child(7) button').click()")
    assert [float(text.split()[0]) for text in column(page, "rungs", 6)] == sorted(accuracies, reverse=True)
    page.run("document.querySelector('#rungs thead th:nth-child(8) button').click()")
    assert column(page, "rungs", 7)[-1] == "–", "what is missing stays last"
    page.run("document.querySelector('#rungs thead th:nth-child(1) button').click()")
    assert [float(text.split()[0]) for text in column(page, "rungs", 6)] == accuracies, "the ladder's order is back"


def test_filter_keeps_the_rows_with_all_words(page):
    field = "document.querySelector('[data-filter=rungs]')"
    page.run(f"{field}.value = 'PIXELS mixer_'; {field}.dispatchEvent(new Event('input'))")
    assert [name.split()[0] for name in column(page, "rungs", 0)] == ["mixer_nano", "convmixer_nano"]
    assert page.run(f"{field}.nextElementSibling.textContent") == "2 of 12"
    page.run(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert len(column(page, "rungs", 0)) == 12


def test_copy_buttons_put_the_table_on_the_clipboard(page):
    copied = {}
    for form in ("Markdown", "LaTeX", "CSV"):
        page.run(f"document.querySelector('[data-copy=rungs-{form}]').click()")
        copied[form] = page.run("new Promise(done => setTimeout(() => done(navigator.clipboard.readText()), 100))")
        assert page.run(f"document.querySelector('[data-copy=rungs-{form}]').textContent") == "Copied"
    assert copied["Markdown"].startswith("| rung | family | parameters |")
    assert "| `mixer_nano permute=none` | mixer |" in copied["Markdown"]
    assert r"\toprule" in copied["LaTeX"] and r"\texttt{mixer\_nano permute=none}" in copied["LaTeX"]
    header, first, *_ = copied["CSV"].splitlines()
    assert header.startswith("rung,family,model,condition") and first.startswith("mlp_nano permute=none,mlp,")
    assert copied["CSV"].count("\n") == 13
