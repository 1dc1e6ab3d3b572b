"""Tuning, read: winners, their warnings, and the map."""

import math
import re
from xml.etree import ElementTree

import pytest

from analysis.compare import tuning
from analysis.figures import draw


def rows(values: dict[tuple, float | None], axes=("lr", "weight_decay"), **fields) -> list[dict]:
    """Outcomes of one model; None is a run that failed."""
    return [
        {"model": "mixer_nano", "signature": f"{i}", "seed": 0, "epochs": 30, "acc1": acc1, **fields}
        | {"state": "failed" if acc1 is None else "done"}
        | dict(zip(axes, cell, strict=True))
        for i, (cell, acc1) in enumerate(values.items())
    ]


def best(outcomes: list[dict], axes=("lr", "weight_decay"), ranges=None) -> tuning.Winner:
    (found,) = tuning.winners(tuning.cells(outcomes, axes), axes, ranges or {})
    return found


def test_the_winner_its_runner_up_and_what_hangs_on_it():
    values = {(lr, wd): 80 - 3 * abs(math.log10(lr) + 3) - wd for lr in (1e-4, 1e-3, 1e-2) for wd in (0.0, 0.5, 5.0)}
    win = best(rows(values))
    assert win.cell == {"lr": 1e-3, "weight_decay": 0.0} and win.second == {"lr": 1e-3, "weight_decay": 0.5}
    assert (win.acc1, win.second_acc1, win.near, win.finished, win.tried) == (80, 79.5, 2, 9, 9)
    assert win.edges == (), "inside in lr, and nothing lies below no weight decay"


@pytest.mark.parametrize(
    ("peak", "words"),
    [
        (1e-4, "lr 0.0001 is at the lower edge: try lower"),
        (1e-2, "lr 0.01 is at the upper edge: try higher"),
        (1e-3, ""),
    ],
)
def test_a_best_cell_at_the_edge_is_pointed_out(peak, words):
    values = {(lr, 0.1): 80.0 - 3 * abs(math.log10(lr / peak)) for lr in (1e-4, 1e-3, 1e-2)}
    assert "; ".join(best(rows(values)).edges) == words


def test_beyond_what_diverges_there_is_nothing_to_try():
    win = best(rows({(1e-3, 0.1): 70.0, (1e-2, 0.1): 80.0, (1e-1, 0.1): None}))
    assert win.edges == () and (win.finished, win.tried) == (2, 3)


def test_an_edge_that_others_are_level_with_is_said_to_be():
    win = best(rows({(1e-3, 0.1): 79.5, (1e-2, 0.1): 80.0}))
    assert win.edges == ("lr 0.01 is at the upper edge: try higher, though others are level",)


def test_the_edge_of_a_range_is_its_outer_tenth():
    ranges = {"lr": (1e-4, 1e-2)}
    values = {(2e-4, 0.1): 1.0, (9.9e-3, 0.1): 5.0, (1e-3, 0.1): 2.0}
    assert best(rows(values), ranges=ranges).edges == ("lr 0.0099 is at the upper edge: try higher",)
    values[1.1e-3, 0.1] = 90.0
    assert best(rows(values), ranges=ranges).edges == ()


def test_words_have_no_edge_and_seeds_are_averaged():
    values = {("adamw", 0): 80.0, ("adamw", 1): 60.0, ("sgd", 0): 71.0, ("sgd", 1): 73.0}
    win = best(rows(values, ("opt", "seed")), ("opt", "seed"))
    assert win.cell == {"opt": "sgd"} and win.acc1 == 72 and win.edges == () and win.tried == 2
    values["lion", 0], values["lion", 1] = 99.0, None  # one of its seeds failed
    assert best(rows(values, ("opt", "seed")), ("opt", "seed")).cell == {"opt": "sgd"}


def test_only_runs_of_the_full_length_win():
    short = rows({(1e-3, 0.1): 99.0}, epochs=3)
    assert best(short + rows({(1e-2, 0.1): 80.0, (1e-4, 0.1): 70.0})).acc1 == 80


def test_without_a_finished_run_there_is_no_winner_and_no_map():
    table = tuning.cells(rows({(1e-3, 0.1): None}), ("lr", "weight_decay"))
    assert tuning.winners(table, ("lr", "weight_decay"), {}) == []
    assert tuning.heat_map(table, "mixer_nano", ("lr", "weight_decay"), "test images") is None


def test_the_map_shows_every_cell_and_rings_the_best():
    values = {(lr, wd): 60.0 + 10 * i for i, lr in enumerate((1e-4, 1e-3, 1e-2)) for wd in (0.0, 0.05)}
    values[1e-2, 0.05] = None
    axes = ("lr", "weight_decay")
    svg = draw.standalone(tuning.heat_map(tuning.cells(rows(values), axes), "mixer_nano", axes, "test images"))
    root = ElementTree.fromstring(svg)
    text = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert text.count("60.0") == 2 and text.count("70.0") == 2 and text.count("80.0") == 1
    assert {"1e-4", "1e-3", "0.01", "0", "0.05", "lr", "weight_decay"} <= set(text)
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "mixer_nano\nlr 0.01, weight_decay 0\n80.00 %" in titles
    assert "mixer_nano\nlr 0.01, weight_decay 0.05\nfailed" in titles and len(titles) == 6
    ringed = re.findall(
        r'id="tuning-mixer_nano-(cell\d)">(?:(?!</g>).)*stroke: currentColor; stroke-width: 2', svg, re.S
    )
    assert ringed == ["cell0"], "the best comes first"


def test_drawn_cells_are_points_on_logarithmic_axes():
    values = {(lr, lr / 7): 60 + 1e4 * lr for lr in (1e-4, 2.5e-4, 1e-3)}
    axes = ("lr", "weight_decay")
    svg = tuning.heat_map(tuning.cells(rows(values), axes), "mixer_nano", axes, "test images")
    assert svg.count("<title>") == 3 and "70.0" in svg and "mathdefault" not in svg
