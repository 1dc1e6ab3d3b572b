"""Cells of a sweep in other sweeps: their gap and another frame become columns of the page and of its figure."""

import re

import pytest

from analysis.compare import frames
from analysis.factorial import beside, columns
from analysis.figures import scatter
from analysis.report.assemble import write_report
from engine.errors import Refusal
from engine.fields.claims import Contrast, Family
from engine.folder.store import csv_text, write_json
from engine.run import make_run
from tests.reports import plain, section, write_run

SECOND = {"frame": "convmixer", "dim": 24}
RUNGS = {"dense": "lattice_nano", "kernel": "lattice_nano mixer=kernel"}


def sweep(results, cells, permute=("none",), seeds=(0, 1, 2), **fields):
    """Runs whose accuracy is the cell's, a shuffle costs 7 points of the kernel and 2 of the rest, a frame gives 10."""
    folders = []
    for seed in seeds:
        for arguments in cells:
            for kind in permute:
                run = make_run(
                    {"model": "lattice_nano", "model_kwargs": arguments, "seed": seed, "permute": kind} | fields
                )
                is_kernel = arguments.get("mixer") == "kernel"
                acc1 = (64 if is_kernel else 60) + 10 * ("frame" in arguments) + 0.1 * ((seed * 7) % 3)
                folders.append(write_run(results, run, acc1 - (7 if is_kernel else 2) * (kind != "none")))
                write_json(folders[-1] / "profile.json", {"params": 8000 + 2000 * is_kernel, "macs": 16000})
    return frames.load(folders), folders


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The sweep, its gaps and the second frame, which holds runs of the first one, too."""
    results = tmp_path_factory.mktemp("results")
    cells = [{"mixer": "dense"}, {"mixer": "kernel"}]
    own = sweep(results, cells)
    gaps = sweep(results, cells, ("none", "pixels"))[0]
    second = sweep(results, [*cells, *({**cell, **SECOND} for cell in cells)])[0]
    return results, own, gaps, second


def test_another_sweep_knows_the_gap_and_the_other_frame_of_these_cells(studies):
    _, (own, _), gaps, second = studies
    found = beside.of(own, gaps, "gaps")
    assert found.setting == "" and found.values.empty
    assert found.gaps.groupby("rung")["gap"].mean().round(6).to_dict() == {RUNGS["dense"]: 2, RUNGS["kernel"]: 7}
    found = beside.of(own, second, "second")
    assert found.setting == "dim 24, frame convmixer" and found.gaps.empty
    means = found.values.groupby("rung")["value"].agg(["mean", "size"])
    assert means.loc[RUNGS["kernel"], "mean"] - means.loc[RUNGS["dense"], "mean"] == pytest.approx(4)
    assert list(means["size"]) == [3, 3] and means["mean"].min() > 70, "runs of the first frame are not taken"


def test_what_has_nothing_or_too_much_to_say_is_refused(studies, tmp_path):
    _, (own, _), _, _ = studies
    with pytest.raises(Refusal, match="none of its runs"):
        beside.of(own, own, "own")
    settings = [{"mixer": "kernel", **SECOND}, {"mixer": "kernel", "frame": "resmlp"}]
    with pytest.raises(Refusal, match=r"in several settings .*dim 24, frame convmixer.*; frame resmlp"):
        beside.of(own, sweep(tmp_path, settings)[0], "mixed")
    with pytest.raises(Refusal, match="its runs are on cifar10"):
        beside.of(own, own.assign(dataset="cifar10"), "other")


def test_page_and_figure_have_the_columns(studies):
    results, (_, folders), gaps, second = studies
    contrast = Contrast({RUNGS["kernel"]: 1, RUNGS["dense"]: -1})
    (results / "tried").mkdir(exist_ok=True)
    kept = {"opt": "adamw", **dict.fromkeys(("pixels", "patches_own", "patches", "rows_columns"), 1.0)}
    kept |= {**dict.fromkeys(("within", "shift", "flip", "rotation"), 1.0), "log10_size": 9.0}  # measuring takes long
    (results / "tried" / "symmetry.csv").write_text(csv_text([{"model": rung, **kept} for rung in RUNGS.values()]))
    told = {"families": {"pairs": Family({"dense to kernel": contrast}, 1.0)}}
    path = write_report("tried", folders, results, beside={"gaps": gaps, "second": second}, **told)
    row = plain(section(path.read_text(), "asked"))
    assert "permutation gap" in row and "dim 24, frame convmixer" in row
    table = row[row.index("differs in") :]
    assert "+4.00" in table and "+5.00" in table, "accuracy, and the gap: 7 - 2"
    figure = (path.parent / "figures" / "forest.svg").read_text()
    for words in ("dense to kernel", "parameters", "dim 24, frame convmixer", "permutation gap", "+4.00", "+2.00 k"):
        assert words in figure, words
    assert "training loss" not in figure, "these runs recorded none"
    write_report("tried", folders, results, **told)
    assert "permutation gap" not in (path.parent / "figures" / "forest.svg").read_text()


def test_the_figure_says_whose_effect_a_pair_is_and_gives_no_cost_of_an_interaction(tmp_path):
    cells = [{"mixer": "kernel"}, {"mixer": "depthwise"}]
    frame, folders = sweep(tmp_path, [*cells, *({**cell, "frame": "convmixer"} for cell in cells)])
    rungs = list(dict.fromkeys(frame["rung"]))
    plain_kernel, plain_own, other_kernel, other_own = rungs
    both = Contrast({other_own: 1, other_kernel: -1, plain_own: -1, plain_kernel: 1}, ("channels", "frame"))
    asked = {
        "kernel to depthwise": Contrast({plain_own: 1, plain_kernel: -1}, ("channels",)),
        "own channels": Contrast({other_own: 1, other_kernel: -1}),
        "channels x frame": both,
    }
    table = columns.table(frame, {}, {"pairs": Family(asked, 1.0)}).set_index("contrast", drop=False)
    told = {row.contrast: columns.ingredient(row) for row in table.itertuples()}
    assert told == {"kernel to depthwise": "channels", "own channels": "", "channels x frame": ""}
    (tmp_path / "tried").mkdir()
    kept = {"opt": "adamw", **dict.fromkeys(("pixels", "patches_own", "patches", "rows_columns"), 1.0)}
    kept |= {**dict.fromkeys(("within", "shift", "flip", "rotation"), 1.0), "log10_size": 9.0}
    (tmp_path / "tried" / "symmetry.csv").write_text(csv_text([{"model": rung, **kept} for rung in rungs]))
    path = write_report("tried", folders, tmp_path, families={"pairs": Family(asked, 1.0)})
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", (path.parent / "figures" / "forest.svg").read_text())
    assert texts.count("channels") == 1 and "–" in texts and "−2.00 k" in texts and "−4.00 k" not in texts


@pytest.mark.parametrize(
    "a, b, crosses",
    [((0, 0), (10, 10), True), ((0, 7), (3, 10), False), ((5, 0), (5, 10), True), ((7, 0), (7, 10), False)],
)
def test_a_name_is_not_put_where_the_front_strikes_it_through(a, b, crosses):
    assert scatter._crosses((4, 4, 6, 6), a, b) is crosses
    assert scatter._crosses((4, 4, 6, 6), b, a) is crosses
