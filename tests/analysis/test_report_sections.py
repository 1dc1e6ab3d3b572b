"""The sections of the report: what is built in, probes, costs, recipes, published numbers, health."""

import csv
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import archs
from analysis.bias import signatures, symmetry
from analysis.report import tables
from analysis.report.sections import pareto as cost
from analysis.report.sections import published
from engine.errors import USAGE, Refusal
from engine.folder.store import csv_text, folder_of, make_folder, write_bytes, write_json
from engine.run import make_run
from tests.reports import page_of, plain, result_of, section, write_run

ROOT = Path(__file__).parents[2]


def symmetry_rows(text):
    """Rung -> marks, of the table on the page."""
    table = text[text.index('<table class="data" id="symmetry"') :]
    rows = re.findall(r"<tr[^>]*><th.*?</tr>", table[: table.index("</table>")], re.DOTALL)
    return {re.findall(r'<th scope="row">(.*?)</th>', row)[0]: re.findall(r">([●○?–])</td>", row) for row in rows}


def test_what_is_built_in_is_shown_and_said(folders, tmp_path):
    text = page_of(folders, tmp_path)
    marks = symmetry_rows(text)
    groups = list(symmetry.GROUPS)
    for model in ("mlp_nano", "mixer_nano", "convmixer_nano"):
        passing = {group for group, mark in zip(groups, marks[model], strict=False) if mark == "●"}
        assert symmetry.expected(model, "adamw") <= passing, model
    assert "●" not in marks["timm/resnet18"]
    built = section(text, "built")
    assert "results/symmetry.csv" in built
    assert "Trained with adamw, <code>mlp</code> cannot see the order of the pixels at all" in built
    assert "<code>mixer</code> cannot see the order of the patches;" in built


def test_a_signature_that_is_not_kept_is_measured_once_and_kept(tmp_path):
    run = make_run({"model": "mlp_nano", "opt": "momentum", "epochs": 2})
    folder = write_run(tmp_path, run, 90.0)
    first = page_of([folder], tmp_path)
    row = next(csv.DictReader((tmp_path / "ladder/symmetry.csv").open()))
    assert (row["model"], row["opt"]) == ("mlp_nano", "momentum")
    assert symmetry_rows(first)["mlp_nano"][:8] == ["●"] * 8, "a rotation, too: the step is linear in the gradient"
    assert "(results/ladder/symmetry.csv)" in first
    assert page_of([folder], tmp_path) == first


@pytest.mark.parametrize(
    "model, nano",
    [
        ("mixer_s16", "mixer_nano"),
        ("patchmlp_1m_unshared", "patchmlp_nano_unshared"),
        ("cyclemlp_1m_isotropic", "cyclemlp_nano_isotropic"),
        ("cyclemlp_b1", None),  # its overlapping patches claim less than any nano member
        ("timm/resnet18", None),
    ],
)
def test_a_small_member_with_the_same_claims_stands_in(model, nano):
    assert signatures.stand_in(model) == nano


def test_only_a_variant_with_claims_of_its_own_lacks_a_stand_in():
    for name in archs.list_archs():
        family, _, variant = name.partition("_")
        own = getattr(importlib.import_module(f"archs.{family}"), "VARIANT_SYMMETRY", {})
        assert variant in own or signatures.stand_in(name), name


def test_probes_are_drawn_by_seed_and_told_with_their_null(folders, tmp_path):
    for place, folder in enumerate(folders):
        values = {
            key: {"value": 50.0 + place, "low": 48.0, "high": 52.0, "null": 10.0} for key in ("acc", "acc_1", "peak")
        }
        (folder / "probes").mkdir()
        write_json(folder / "probes" / "shift.json", {"probe": "shift", "values": values})
    text = section(page_of(folders, tmp_path), "learned")
    assert "<title>mixer, patch peak: 54.0 points (53.0, 54.0, 55.0)</title>" in text
    assert "Moved by one pixel, images are still recognised in 60 % (resnet18) to 51 % (mlp)." in plain(text)
    # By hand: 53, 54 and 55, so a half-width of 4.3027 / sqrt(3) = 2.48
    assert ">54.0 ± 2.5, null 10.0<" in text


def test_gap_and_probes_stand_beside_the_contrasts(tmp_path):
    """Of two cells and three seeds, by hand: gaps of 2, 3, 4 and 7, 8, 9; kept 50 and 75 % at one pixel of eight."""
    folders = []
    for place, model in enumerate(("mlp_nano", "convmixer_nano")):
        for seed in range(3):
            for permute in ("none", "pixels"):
                run = make_run({"model": model, "seed": seed, "permute": permute, "epochs": 2})
                level = 90.0 + seed + place - (2 + 5 * place + seed) * (permute == "pixels")
                folders.append(write_run(tmp_path, run, level))
                if permute == "none":
                    acc = {"acc": 90.0, "acc_1": 50.0 + 20 * place}
                    values = {key: {"value": v, "low": v, "high": v, "null": 10.0} for key, v in acc.items()}
                    (folders[-1] / "probes").mkdir()
                    write_json(folders[-1] / "probes" / "shift.json", {"probe": "shift", "values": values})
    text = page_of(folders, tmp_path, planned={"a kernel": {"convmixer_nano": 1, "mlp_nano": -1}})
    answer = section(text, "asked")
    assert len(re.findall('<div class="fr v-', answer)) == 1, "shuffled runs stand in the gap alone"
    minis = re.findall(r'<div class="mini[^"]*" title="(a kernel, [^"]*)"', answer)
    assert minis[0].startswith("a kernel, permutation gap: +5.00") and minis[1].startswith(
        "a kernel, moved by 1 px: +25.00"
    )
    figure = section(text, "accuracy").split("<details>")[0]
    assert "permute" not in plain(re.sub("<title>.*?</title>", "", figure)) and figure.count("<li tabindex") == 2


def test_a_failed_self_test_is_said_first(folders, tmp_path):
    passed = page_of(folders, tmp_path)
    assert "The self-test passed" in passed and "Do not trust" not in passed
    verdict = json.loads((ROOT / "results/dsd.json").read_text()) | {"passed": False}
    (tmp_path / "dsd.json").write_text(json.dumps(verdict))
    failed = page_of(folders, tmp_path)
    assert failed.index("Do not trust this page") < failed.index("<h1>")
    assert "The self-test passed" not in failed


def test_fair_tables_hold_those_of_equal_cost(folders, tmp_path):
    for folder in folders[3:]:
        write_json(folder / "profile.json", {"params": 9000, "macs": 500 if "resnet" in folder.name else 16000})
    text = page_of(folders, tmp_path)
    fair = section(text, "accuracy")
    assert "Table: at 16.0 k MACs per image ± 10%" in fair and "Table: at 9.00 k parameters ± 10%" in fair
    assert "python scripts/profile_model.py --sweep ladder" in section(text, "pareto")
    budget = fair[fair.index('id="fair-macs-0"') : fair.index("Table: Rungs that miss")]
    assert "98.19" in budget and ">baseline<" not in budget and "+5.05" not in budget, "no baseline was named"
    fair = section(page_of(folders, tmp_path, baseline=("mixer_nano",)), "accuracy")
    budget = fair[fair.index('id="fair-macs-0"') :]
    assert ">baseline<" in budget and ">+5.05 ± 0.15<" in budget


def test_latencies_and_references_are_drawn_where_they_were_measured(folders, tmp_path):
    speeds = tmp_path / "s.csv"
    speeds.write_text(
        "model,device,latency_ms,images_per_s,images_per_s_with_copy\n"
        "mlp_nano,cuda,0.1,9000,8000\nmixer_nano,cuda,0.4,4000,3900\ntimm/vit_tiny,cuda,2.5,500,400\n"
    )
    text = page_of(folders, tmp_path, speeds=speeds)
    drawn = {path.stem for path in (tmp_path / "ladder/figures").iterdir()}
    assert {f"accuracy-{each}" for each in cost.SPEEDS} <= drawn
    assert "images/s in inference, copied from the host" in text
    assert "<title>timm/vit_tiny: 2 latency at batch 1, ms, profiled, not trained here</title>" in text
    assert text.count("profiled, not trained here</title>") == 3
    assert "At 400 µs latency per image" not in text, "no two rungs share a budget"
    with pytest.raises(Refusal, match=r"there is no .*x\.csv"):
        page_of(folders, tmp_path, speeds=tmp_path / "x.csv")
    (tmp_path / "ladder" / "speeds.csv").write_text(speeds.read_text())
    assert page_of(folders, tmp_path) == text
    told = subprocess.run(
        [sys.executable, "-m", "scripts.compare", str(tmp_path / "runs"), "--fair", "time", "--speeds", str(speeds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "SOFTMLP_RESULTS": str(tmp_path)},
    )
    assert "no two rungs are of equal time" in told.stderr, "by the same latencies"


def test_recipes_have_a_heat_map_and_a_warning_at_the_edge(tmp_path):
    folders = []
    for lr in (1e-3, 2e-3, 4e-3):
        for decay in (0.0, 0.05):
            run = make_run({"model": "mlp_nano", "lr": lr, "weight_decay": decay, "epochs": 2})
            folders.append(write_run(tmp_path, run, 80 + 1000 * lr + 10 * decay))
    text = page_of(folders, tmp_path)
    tried = section(text, "recipes")
    assert "lr 0.004 is at the upper edge: try higher" in tried
    assert "<title>mlp_nano\nlr 0.004, weight_decay 0.05\n84.50 %</title>" in tried
    assert (tmp_path / "ladder/figures/tuning-0.svg").exists()
    assert "accuracies on test images, of the best of many" in tried and "held-out" not in tried


def test_recipes_are_judged_by_the_images_of_the_runs_and_never_averaged_over_data(tmp_path):
    """At rate 0.002 whole images have 82 and shuffled ones 50: 66 is neither."""
    folders = []
    for lr, permute in itertools.product((1e-3, 2e-3), ("none", "pixels")):
        run = make_run({"model": "mlp_nano", "lr": lr, "permute": permute, "holdout": 0.1, "epochs": 2})
        folders.append(write_run(tmp_path, run, (80 if permute == "none" else 48) + 1000 * lr))
    text = page_of(folders, tmp_path)
    tried = section(text, "recipes")
    assert "accuracies on held-out training images, of the best of many" in tried
    assert "mlp_nano permute=none\nlr" not in tried, "one axis makes no map"
    rows = re.findall(r"mlp_nano permute=(\w+).*?lr=0.002.*?>(\d\d\.\d\d)<", tried, re.DOTALL)
    assert rows[:2] == [("none", "82.00"), ("pixels", "50.00")]


def test_what_others_report_is_shown_apart(tmp_path):
    runs = [make_run({"model": "mixer_1m", "dataset": "cifar10", "epochs": 2, "seed": seed}) for seed in range(2)]
    folders = []
    for run in runs:
        folder = folder_of(run, tmp_path)
        make_folder(run, folder)
        write_json(folder / "status.json", {"state": "done", "seconds": 1.0})
        write_bytes(folder / "summary.csv", csv_text([{"epoch": 0, "eval_top1": 80.0 + run.seed}]).encode())
        folders.append(folder)
    text = page_of(folders, tmp_path)
    others = section(text, "published")
    assert "Mixer-nano" in others and "B-MLP" not in others and "mixer_1m" not in others
    assert result_of(folders)["Best rung"].startswith("The most accurate rung is `mixer_1m` with 80.50")


@pytest.mark.parametrize(
    "name, family",
    [("Mixer-B/16", "mixer"), ("MLP-Mixer", "mixer"), ("B-MLP", "bmlp"), ("S2-MLP", "s2mlp"), ("gMLP-Ti", "gmlp")],
)
def test_published_names_find_their_family(name, family):
    assert published.family_of(name) == family


@pytest.mark.parametrize(
    "text, key",
    [
        *(("18.5 M", "18500000"), ("−0.73 ± 1.2", "-0.73"), ("< 0.001", "0.001"), ("–", ""), ("9 of 27", "9")),
        *(("mixer_nano", "mixer_nano"), ("10^22.0", "22"), ("1,467", "1467"), ("107 µs", "0.000107"), ("3x3", "3x3")),
    ],
)
def test_cells_sort_by_their_number(text, key):
    assert tables.sort_key(text) == key


def test_a_large_sweep_is_cut_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 5)
    for room in ("page", "sections.accuracy"):
        monkeypatch.setattr(f"analysis.report.{room}.DRAWN", 4)
    runs = [make_run({"model": "mlp_nano", "model_kwargs": {"dim": 8 * n}, "epochs": 2}) for n in range(1, 9)]
    text = page_of([write_run(tmp_path, run, 90 + place) for place, run in enumerate(runs)], tmp_path)
    assert "The first 5 rows; 3 more are left out here" in text
    accuracy = section(text, "accuracy").split("<details>")[0]
    assert "The 4 most accurate; 4 rungs more are not compared." in accuracy
    assert accuracy.count("<title>") == 4 and "97.00" in accuracy and "90.00" not in accuracy


def test_accuracies_on_different_data_are_not_compared(tmp_path):
    folders = []
    for permute, level in (("none", 95.0), ("pixels", 94.0)):
        for model, lead in (("mlp_nano", 0.0), ("mixer_nano", 2.0)):
            for seed in range(3):
                run = make_run({"model": model, "permute": permute, "seed": seed, "epochs": 2})
                folders.append(write_run(tmp_path, run, level + lead + seed * lead / 10))
    said = result_of(folders)["Best rung"]
    assert "`mixer_nano permute=none` with 97.20" in said and "ahead of `mlp_nano permute=none`" in said
    text = page_of(folders, tmp_path)
    points = re.findall("<title>(.*?):", (tmp_path / "ladder/figures/accuracy-macs.svg").read_text())
    assert sorted(points) == ["mixer_nano permute=none", "mlp_nano permute=none"]
    gaps = (tmp_path / "ladder/figures/gaps.svg").read_text()
    assert (
        "mixer_nano permute=none, shuffled pixels\n97.20 % on whole images, 96.20 % on shuffled ones\ngap +1.00" in gaps
    )
    assert "<title>mixer: +1.00 points (+1.00, +1.00, +1.00)</title>" in section(text, "built")


def test_figures_are_of_one_data_set_and_name_the_others(tmp_path):
    """92 % on an easier set is no better than 60 % on this one, and no point of its figures."""
    folders = []
    for dataset, level in (("cifar10", 60.0), ("cifar10_gaussian", 92.0)):
        for model in ("mlp_nano", "mixer_nano")[: 2 if dataset == "cifar10" else 1]:
            folders.append(write_run(tmp_path, make_run({"model": model, "dataset": dataset, "epochs": 2}), level))
    said = plain(page_of(folders, tmp_path))
    points = re.findall("<title>(.*?):", (tmp_path / "ladder/figures/accuracy-macs.svg").read_text())
    assert len(points) == 2 and "gaussian" not in " ".join(points)
    assert "Runs on cifar10_gaussian are judged by other images and stand in the tables alone." in said
    assert "with 60.00 %" in said.partition("The most accurate rung is")[2][:60]


def test_health_counts_hours_and_attempts(runs, tmp_path):
    folders = [write_run(tmp_path, run, 90.0, seconds=1800.0, attempt=1 + (run.seed == 2)) for run in runs[:6]]
    text = plain(section(page_of(folders, tmp_path), "health"))
    assert "6 / 6runs donenone failed" in text and "3.0 hof trainingmedian 1800 s a run" in text
    assert "2restarted8 attempts, most in one: 2" in text and "2 × 3rungs × seeds" in text


def test_a_launch_measures_the_probes_that_the_sweep_names_and_shows_them(tmp_path, digits):
    sweep = tmp_path / "tried.py"
    sweep.write_text(
        '"""What?"""\nfrom engine.run import Run\nPROBES = ("shift",)\n'
        'def runs():\n    yield Run(model="mlp_nano", epochs=1, batch_size=64)\n'
    )

    def launch():
        command = [sys.executable, "-m", "scripts.sweep", "launch", str(sweep), "--cluster", "local", "--slots", "1"]
        environment = {**os.environ, "SOFTMLP_RESULTS": str(tmp_path), "SOFTMLP_DATA": str(digits)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    first = launch()
    assert first.returncode == 0, first.stderr
    assert "probes: shift of 1 runs" in first.stdout
    page = tmp_path / "tried/report.html"
    assert 'id="probe-shift"' in page.read_text()
    written = page.stat().st_mtime_ns
    again = launch()
    assert again.returncode == 0 and "probes:" not in again.stdout and page.stat().st_mtime_ns == written
    sweep.write_text(sweep.read_text().replace('"shift"', '"shfit"'))
    wrong = launch()
    assert wrong.returncode == USAGE and "unknown probe 'shfit'; did you mean 'shift'?" in wrong.stderr


def test_a_rung_is_marked_in_every_figure_and_table(folders, tmp_path):
    planned = {"a kernel": {"convmixer_nano": 1, "mixer_nano": -1}}
    text = page_of(folders, tmp_path, planned=planned)
    for name in ("asked", "accuracy", "pareto", "built", "curves", "health", "reproduce"):
        assert re.search(r'data-r="(?:r\d )?r1(?: r\d)?"', section(text, name)), name
    assert 'tabindex="0" data-r="r1"' in text, "by keyboard, too"


def test_a_mixers_symmetry_is_measured_and_not_its_familys(tmp_path):
    """Arguments that are sizes do not count; those that name a mixer or bend it do."""
    given = {"dense": {"mixer": "two", "dim": 12}, "flip": {"mixer": "kernel", "wrap": True}}
    runs = [make_run({"model": "lattice_nano", "model_kwargs": own, "epochs": 2}) for own in given.values()]
    text = page_of([write_run(tmp_path, run, 90.0) for run in runs], tmp_path)
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "ladder/symmetry.csv").open())}
    assert rows.keys() == {"lattice_nano mixer=two", "lattice_nano mixer=kernel wrap=True"}
    passing = {
        name: {group for group in symmetry.GROUPS if symmetry.verdict(float(row[group])) == "pass"}
        for name, row in rows.items()
    }
    assert passing["lattice_nano mixer=kernel wrap=True"] == {"within", "shift", "flip"}
    assert passing["lattice_nano mixer=two"] == symmetry.expected("lattice_nano", "sgd", mixer="two")
    assert "lattice_nano mixer=two" in text
