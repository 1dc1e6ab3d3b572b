"""The report: true sentences, nothing loaded, equal bytes for equal runs, and nothing left out."""

import hashlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

import archs
from analysis import judges
from analysis.compare import frames
from analysis.figures import draw, looks
from analysis.report import assemble, labels, tables
from engine.cli.flags import Parser, add_fields, collect
from engine.errors import Refusal
from engine.folder.store import folder_of
from engine.run import Run, make_run
from tests.reports import LEVELS, Reader, cards, page_of, plain, result_of, section, write_run

ROOT = Path(__file__).parents[2]


def test_page_loads_nothing_and_is_well_formed(folders, tmp_path):
    planned = {"a kernel": {"convmixer_nano": 1, "mixer_nano": -1}}
    for given in ({}, {"planned": planned}):
        text = page_of(folders, tmp_path, **given)
        page = Reader(text)
        assert page.loads == []
        assert page.open == []
        assert not re.search(r"https?://|@import|url\((?!#)", text)
        assert len(page.ids) == len(set(page.ids))
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert used
        assert used <= set(page.ids)


def test_page_is_the_same_twice_in_two_processes(folders, tmp_path):
    first = page_of(folders, tmp_path)
    code = (
        "import sys; from pathlib import Path; from analysis.report.assemble import write_report;"
        "write_report('ladder', [Path(x) for x in sys.argv[2:]], Path(sys.argv[1]))"
    )
    (tmp_path / "ladder/report.html").unlink()
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *map(str, folders)], check=True, cwd=ROOT)
    assert (tmp_path / "ladder/report.html").read_text() == first
    assert {path.name for path in (tmp_path / "ladder").iterdir()} == {"report.html", "figures"}


def test_every_run_is_named(folders, runs, tmp_path):
    text = page_of(folders, tmp_path, question="Which bias?")
    assert all(run.signature in text for run in runs)
    assert "<h1>Which bias?</h1>" in text
    assert "c0ffee" in text
    assert "12 runs: 12 done" in plain(text)


def test_sentences_say_best_rung_range_and_caveats(folders, tmp_path):
    said = result_of(folders)
    assert list(said) == ["Best rung", "Range", "Not decided"]
    assert said["Best rung"].startswith(
        "The most accurate rung is `convmixer_nano` with 98.19 ± 0.53 % (mean of 3 seeds"
    )
    assert "ahead of `timm/resnet18` by 2.01 ± 0.04 points" in said["Best rung"]
    # 90 and 98 points, and the mean 0.4 / 3 of what the seeds add per eight or fourteen letters
    assert "range from 90.11 % (`mlp_nano`) to 98.19 % (`convmixer_nano`)" in said["Range"]
    assert "no ingredient is said to buy anything" in said["Range"]
    assert "500 test images of digits" in said["Not decided"]
    assert "With 3 seeds per rung" in said["Not decided"]
    assert "no result yet" not in said["Not decided"]
    assert "the flat MLP ties with nearly every other one" in section(page_of(folders, tmp_path), "accuracy")


def test_the_order_of_a_file_is_no_claim(folders):
    assert result_of(folders[::-1]) == result_of(folders)


def test_what_is_asked_beforehand_is_answered_first(folders, runs, tmp_path):
    """By hand: the differences of conv and mixer are 5, 5.04 and 5.12, of mlp and mixer -3, -3.02 and -3.06."""
    planned = {"a kernel": {"convmixer_nano": 1, "mixer_nano": -1}, "no tokens": {"mlp_nano": 1, "mixer_nano": -1}}
    text = page_of(folders, tmp_path, planned=planned)
    said = cards(text)
    assert said["gain"].startswith(
        "1 gains. A kernel +5.1. None is clean. The +5.1 of a kernel cannot be told from the"
    )
    assert said["loss"] == "1 loses. No tokens −3.0. None is clean."
    assert said["undecided"] == "None undecided. None is shown to lie within ± 0.5 points."
    rows = re.findall(r'<div class="fr v-(\w+)".*?<b>(.*?)</b>.*?class="val">(.*?)</div>', text, re.DOTALL)
    assert [(verdict, name, plain(value)) for verdict, name, value in rows] == [
        ("gain", "a kernel", "+5.1 ± 0.2"),  # 5.0533 and 4.3027 * 0.0611 / sqrt(3) = 0.152
        ("loss", "no tokens", "−3.0 ± 0.1"),
    ]
    assert text.index("cards") < text.index('id="accuracy"') and "Range" not in plain(text)
    assert "changes: frame mixer to convmixer" in text, "what else differs is computed"
    turned = page_of(folders[::-1], tmp_path, planned=planned)
    assert cards(turned) == said, "the order of a file is no claim"
    wave = (0.0, 2.0, 1.0)
    noisy = [write_run(tmp_path, run, 90 + wave[(run.seed + len(run.model)) % 3]) for run in runs]
    said = cards(page_of(noisy, tmp_path, planned=planned))
    assert said["gain"] == "None gain. No contrast is shown to do so."
    assert said["undecided"].startswith("2 undecided.")


def test_a_contrast_of_one_ingredient_alone_is_clean(tmp_path):
    """Differences of 3, 3.1 and 3.2; the cells of the lattice differ in one axis, as their files declare."""
    arguments = {"kernel": {"mixer": "kernel"}, "depthwise": {"mixer": "depthwise"}}
    made = {
        cell: [make_run({"model": "lattice_nano", "model_kwargs": own, "seed": s, "epochs": 2}) for s in range(3)]
        for cell, own in arguments.items()
    }
    folders = [
        write_run(tmp_path, run, 80 + 3.1 * (cell == "depthwise") + 0.1 * (run.seed - 1) * (cell == "depthwise"))
        for cell, own in made.items()
        for run in own
    ]
    weights = {made["depthwise"][0].rung: 1, made["kernel"][0].rung: -1}
    text = page_of(folders, tmp_path, planned={"a kernel per channel": weights})
    assert "Nothing else changes with it" in cards(text)["gain"]
    assert '<span class="chip" title="channels' in text and "only this" in text
    assert 'class="vm"' in text and 'class="vm hollow"' not in text
    assert "kernel → depthwise" in text, "called by their mixers"


def test_the_images_that_judge_are_those_of_the_runs(tmp_path):
    """5,047 of the 50,000 training images have a hash below 0.1: counted with integers of Python, not NumPy."""
    mask = (1 << 64) - 1

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    key = int.from_bytes(hashlib.sha256(b"0/holdout").digest()[:8], "little")
    golden = 0x9E3779B97F4A7C15
    expected = sum((mix(key ^ mix(index * golden & mask)) >> 11) / 2**53 < 0.1 for index in range(50_000))
    assert expected == judges.count("cifar10", 0.1) == 5047
    runs = [make_run({"model": "mlp_nano", "dataset": "cifar10", "holdout": 0.1, "seed": seed}) for seed in range(3)]
    said = result_of([write_run(tmp_path, run, 50.0 + run.seed) for run in runs])["Not decided"]
    error = 100 * (0.51 * 0.49 / 5047) ** 0.5
    assert f"the 5,047 held-out training images of cifar10 add a standard error of {error:.1f} points" in said
    own = [make_run({"model": "mlp_nano", "dataset": "imagefolder/birds", "img_size": 8, "seed": s}) for s in range(5)]
    said = result_of([write_run(tmp_path, run, 50.0 + run.seed) for run in own])["Not decided"]
    assert (
        said == "One recipe per rung was tried: the intervals are over seeds and say nothing of other recipes or data."
    )


def test_best_rung_that_is_a_reference_is_called_one(runs, tmp_path):
    levels = {"mixer_nano": 93.0, "timm/resnet18": 99.0}
    folders = [write_run(tmp_path, run, levels[run.model] + run.seed / 3) for run in runs if run.model in levels]
    said = result_of(folders)
    assert "It is a reference; of the testbed’s own, `mixer_nano` is best with 93.33 ± 0.83 %." in said["Best rung"]


def test_equal_leads_and_unsteady_rungs_are_said_to_be(runs, tmp_path):
    levels = {"mlp_nano": (95.0, 95.2, 95.4), "convmixer_nano": (96.2, 96.4, 96.6), "mixer_nano": (40.0, 50.0, 60.0)}
    chosen = [run for run in runs if run.model in levels]
    said = result_of([write_run(tmp_path, run, levels[run.model][run.seed]) for run in chosen])
    assert "its lead over `mlp_nano` is 1.20 points with each seed, too coarse for an interval." in said["Best rung"]
    assert "The seeds of `mixer_nano` lie more than 5 points apart" in said["Not decided"]


def test_failed_and_missing_runs_are_listed(folders, runs, tmp_path):
    write_run(
        tmp_path, runs[1], 50.0, state="failed", error_class="diverged", error="Traceback\nloss is <NaN>", epoch=2
    )
    missing = make_run({"model": "mixer_nano", "seed": 7, "epochs": 4})
    text = page_of([*folders, folder_of(missing, tmp_path)], tmp_path, runs=[*runs, missing])
    listed = section(text, "health")
    assert re.search(rf"{runs[1].signature}.*failed.*2 of 4.*diverged.*loss is &lt;NaN&gt;", listed)
    assert re.search(rf"{missing.signature}.*planned", listed)
    assert "Traceback" not in text
    assert "13 runs: 11 done, 1 failed, 1 planned" in plain(text)
    assert "2 of 13 runs have no result yet or failed" in text
    above = text[: text.index("<h1>")]
    assert "1 of 13 runs failed (1 diverged)" in above, "a failed run stands above the question"
    write_run(tmp_path, runs[4], 50.0, state="stopped", error_class="terminated", error="stopped by 15", epoch=2)
    assert "runs failed" not in page_of(folders[3:6], tmp_path), "one that was stopped has not failed"


@pytest.mark.parametrize("count", [1, 4])
def test_one_seed(runs, tmp_path, count):
    chosen = [run for run in runs if run.seed == 0][:count]
    folders = [write_run(tmp_path, run, LEVELS[run.model]) for run in chosen]
    text = page_of(folders, tmp_path)
    assert "nan" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).lower().replace("nano", "")
    said = result_of(folders)
    assert "one seed, so no interval" in said["Best rung"]
    assert "nothing is known of the spread" in said["Not decided"]


def test_nothing_finished(runs, tmp_path):
    folders = [folder_of(run, tmp_path) for run in runs]
    text = page_of(folders, tmp_path, runs=runs)
    assert "No run of this sweep has finished." in text
    assert not {"accuracy", "pareto", "curves", "learned"} & set(Reader(text).ids)
    assert all(run.signature in text for run in runs)
    with pytest.raises(Refusal, match="no runs"):
        assemble.write_report("empty", [], tmp_path)


def test_what_a_user_wrote_is_text(tmp_path):
    run = make_run({"model": "convmixer_nano", "model_kwargs": {"act": "<script>$x_1$</script>"}})
    text = page_of([write_run(tmp_path, run, 90.0)], tmp_path, question="a < b & <i>c</i>")
    assert text.count("<script>") == 1  # ours
    assert "a &lt; b &amp; &lt;i&gt;c" in text
    Reader(text)


def names_of(rungs, given=None):
    named = [labels.Named(rung, rung, looks.name_of(rung.partition(" ")[0], {})) for rung in rungs]
    return list(labels.labels(named, given or {}).values())


def test_labels_leave_out_what_all_share_and_stay_apart():
    rungs = ["mlp_1m depth=4 dim=8 permute=none", "mlp_1m depth=4 dim=9 permute=none", "deit_1m depth=4 permute=none"]
    assert names_of(rungs) == ["mlp dim=8", "mlp dim=9", "deit"]
    assert names_of(rungs, {rungs[1]: "mlp small"}) == ["mlp", "mlp small", "deit"]
    assert names_of(["mlp_1m", "mlp_5m", "timm/resnet18"]) == ["mlp 1m", "mlp 5m", "resnet18"]
    assert names_of(["mixer_nano lr=0.004", "mixer_nano lr=0.001"]) == ["mixer lr=0.004", "mixer lr=0.001"]
    long = "vip_1m " + " ".join(f"an_argument_{i}=0.123456" for i in range(9))
    assert names_of([long, "vip_1m", "mlp_1m"])[0] == long.replace("_1m", ""), "nothing is cut or rounded"
    with pytest.raises(Refusal, match="LABELS: unknown rung 'mlp_2m'; did you mean 'mlp_1m'"):
        names_of(["mlp_1m", "deit_1m"], {"mlp_2m": "small"})
    with pytest.raises(Refusal, match="LABELS: two rungs are called 'deit'"):
        names_of(["mlp_1m", "deit_1m"], {"mlp_1m": "deit"})


@pytest.mark.parametrize("text", ["lr=0.004", "weight_decay=1.00625", "1.23456 < 2 & x", "v2.5001"])
def test_a_label_is_drawn_as_it_is_and_coordinates_are_rounded(text):
    figure, axes = draw.plain(2, 2)
    with matplotlib.rc_context(draw.STYLE):
        axes.plot([0, 1 / 3], [0, 1 / 7], gid="point0")
        axes.set_title(text)
        axes.set_xticks([0.12345], ["0.12345"])
        svg = draw.inline(figure, "name", text, {"point0": text})
    root = ElementTree.fromstring(draw.standalone(svg))
    read = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith(("}text", "}title"))]
    assert read.count(text) == 2 and "0.12345" in read
    assert root.get("aria-label") == text
    assert re.search(r'd="M [\d.]+ [\d.]+', svg)
    assert not re.search(r'(?:d|x|y|transform|points)="[^"]*\d\.\d{3}', svg)


def test_a_family_looks_the_same_in_every_sweep_and_like_no_other():
    """To a colour-blind reader too: within hues that look alike no shape is used twice, dotted or not."""
    for alike in looks.ALIKE:
        own = [(look.shape, look.dotted) for look in looks.TABLE.values() if look.kind in alike]
        assert len(own) == len(set(own)), alike
    assert set().union(*looks.ALIKE) == set(looks.KINDS) and {look.shape for look in looks.TABLE.values()} <= set(
        looks.SHAPES
    )
    known = {looks.name_of(name, {}) for name in archs.list_archs()} | {"timm"}
    mixers = {path.stem for path in (ROOT / "archs/mixing").glob("[a-z]*.py")}
    known |= {looks.name_of("lattice_nano", {"mixer": mixer}) for mixer in mixers}
    known |= {looks.name_of("lattice_nano", {"mixer": "dense", "frozen": True})}
    assert known <= set(looks.TABLE), "a family of the zoo lacks a look of its own"
    assert looks.looks(["mlp", "deit"])["deit"] == looks.looks(["deit", "other"])["deit"]
    strangers = looks.looks(["mlp", "timm", *(f"stranger{i}" for i in range(15))])
    assert len(set(strangers.values())) == len(strangers)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_paper(dark):
    template = (ROOT / "analysis/report/page.css").read_text()
    papers = re.findall(r"--paper: (#\w{6})", template)
    assert len(papers) == 2

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    verdicts = re.findall(r"--(?:gain|loss|undecided): (#\w{6})", template)
    verdicts = verdicts[3:6] if dark else verdicts[:3]
    for colour in (*(pair[dark] for pair in looks.KINDS.values()), *verdicts):
        bright, dim = sorted([luminance(colour), luminance(papers[dark])], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 3.0, colour


def test_points_tell_their_numbers(folders, tmp_path):
    svg = section(page_of(folders, tmp_path), "pareto")
    assert "<title>mixer_nano: 93.13 ± 0.38 %, n = 3; 32.0 k MACs, 2.00 k parameters" in svg
    assert svg.count("<title>") == 4
    assert "Images/s in training are not drawn: a run has no record of its machine" in svg


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "timm/resnet18", "dataset": "cifar10", "img_size": 32, "amp": True, "opt_betas": (0.9, 0.95)},
        {"model_kwargs": {"depth": 2, "token_ratio": 1e-05}, "train_samples": 100, "lr": 1e-05, "hflip": 0.5},
        {"dataset": "imagefolder/birds", "img_size": 64, "opt": "sgd", "momentum": 0.5, "model_ema": True},
    ],
)
def test_command_gives_the_run_back(fields, tmp_path):
    run = make_run({**fields, "seed": 3})
    line = tables.commands(frames.load([folder_of(run, tmp_path)], [run]))[0]
    parser = Parser()
    add_fields(parser, Run)
    words = shlex.split(line)
    assert words[:2] == ["python", "scripts/train.py"]
    assert collect(parser.parse(words[2:]))[0].signature == run.signature


def test_commands_are_one_line_per_rung(folders):
    lines = tables.commands(frames.load(folders))
    assert len(lines) == 4
    train = "python scripts/train.py --model mlp_nano --epochs 4 --lr 0.002 --threads 2"
    assert lines[0] == f"for seed in 0 1 2; do {train} --seed $seed; done"


@pytest.mark.parametrize("form", [["scripts/report.py"], ["-m", "scripts.report"]])
def test_script_writes_the_page_of_a_sweep_file(form, folders, runs, tmp_path):
    sweep = tmp_path / "mine.py"
    kept = ", ".join(f"make_run({run.record()!r})" for run in runs)
    sweep.write_text(f'"""What?"""\nfrom engine.run import make_run\ndef runs():\n    return [{kept}]\n')
    command = [sys.executable, *form, str(sweep), "--table", "markdown"]
    environment = {"SOFTMLP_RESULTS": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "mine/report.html")
    assert "| `mixer_nano` | mixer |" in done.stdout


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['report.py', '--help']\n"
        "from scripts import report\n"
        "try: report.main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pandas', 'matplotlib', 'scipy', 'submitit'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Write the report of a sweep." in done.stdout


def test_some_figures_are_also_files_that_stand_alone(folders, tmp_path):
    figures = sorted((assemble.write_report("demo", folders, tmp_path).parent / "figures").iterdir())
    assert [path.name for path in figures] == ["accuracy-macs.svg"]
    for path in figures:
        root = ElementTree.fromstring(path.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        used = {element.get("href") for element in root.iter() if element.tag.endswith("}use")}
        assert used <= {f"#{element.get('id')}" for element in root.iter() if element.get("id")}


def test_a_section_is_one_file(folders, tmp_path, monkeypatch):
    """Found by its name and put in its place; one that lacks what a section has is refused with what it lacks."""
    strange = tmp_path / "strange"
    strange.mkdir()
    monkeypatch.setattr(assemble, "SECTIONS", strange)
    monkeypatch.setattr("analysis.report.sections.__path__", [str(strange)])
    text = '"""Strange."""\nfrom analysis.report.page import Section\nPLACE, TITLE, SHORT = 15, "A new one", "New"\n'
    (strange / "stranger.py").write_text(text + "def draw(page):\n    return Section(f'{len(page.frame)} runs < 13')\n")
    page = page_of(folders, tmp_path)
    assert "<h2>A new one</h2>" in page and "12 runs &lt; 13" in page and '<a href="#stranger">New</a>' in page
    (strange / "wrong.py").write_text('"""Wrong."""\nPLACE, TITLE = 1, ""\n')
    with pytest.raises(Refusal, match=r"wrong\.py has no SHORT"):
        page_of(folders, tmp_path)
