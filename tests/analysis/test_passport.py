"""The passport of a module: what is refused, numbers against other scripts', the page."""

import json
import os
import subprocess
import sys

import pytest
import torch

from analysis import notebook
from analysis.bias import probe_runs
from analysis.passport import cost, learned, made, page
from analysis.passport.asked import Asked, kind_of, read
from analysis.passport.holder import open_holder
from engine.cost.profile import witnessed
from engine.errors import CHECKPOINT, DATA, USAGE, Refusal
from engine.folder import store
from engine.run import make_how, make_run
from engine.train import train
from tests import browser

SCRIPT = store.ROOT / "scripts" / "passport.py"
MODULES = """
from torch import nn

def small(num_classes, in_chans, width=8):
    body = [nn.Conv2d(in_chans, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(*body, nn.ReLU(inplace=True), *head)

def of_maps():
    return nn.Conv2d(1, 4, 3)

def broken():
    raise KeyError("depth")

def number():
    return 7
"""


# --- what is refused


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "nets.py").write_text(MODULES)
    torch.save({"0.weight": torch.zeros(8, 3, 3, 3)}, folder / "part.pth")
    (folder / "text.pth").write_text("<html>")
    return folder


@pytest.mark.parametrize(
    "words, code, told",
    [
        ({"word": "mixr_nano"}, USAGE, "unknown model 'mixr_nano'; close: mixer_nano"),
        ({"word": "timm/resnet19"}, USAGE, "timm has no model 'resnet19'"),
        ({"word": "NETS:of_maps", "img_size": 8, "in_chans": 1}, USAGE, r"gives no logits: \(2, 4, 6, 6\) for two"),
        ({"word": "NETS:number"}, USAGE, "gave a int, not an nn.Module"),
        ({"word": "NETS:broken"}, USAGE, "NETS:broken: KeyError: 'depth'"),
        ({"word": "NETS:smal"}, USAGE, "unknown function 'smal'; did you mean 'small'?"),
        ({"word": "NETS:small"}, USAGE, "takes 'num_classes'; give --num-classes, or --data"),
        ({"word": "NETS:small", "num_classes": 9, "in_chans": 1}, USAGE, "does not say which images it takes"),
        ({"word": "nowhere.py:small"}, USAGE, "there is no file nowhere.py"),
        ({"word": "mixer_nano", "weights": "none.pth"}, CHECKPOINT, "--weights none.pth does not exist"),
        ({"word": "mixer_nano", "weights": "FILES/text.pth"}, CHECKPOINT, "it is a web page"),
        ({"word": "NETS:small", "weights": "FILES/part.pth", "dataset": "digits"}, CHECKPOINT, "lacks 5 weights, "),
        ({"word": "timm/resnet18", "dataset": "digit"}, USAGE, "unknown data set 'digit'; did you mean 'digits'?"),
        ({"word": "timm/resnet18", "dataset": "mnist"}, DATA, "mnist_val_28.beton is missing"),
        ({"word": "mixer_nano", "dataset": "digits", "num_classes": 4}, USAGE, "--num-classes 4: digits has 10"),
        ({"word": "mixer_nano", "mean": [0.5]}, USAGE, "--mean and --std go together"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_measured(words, code, told, files, how):
    words = {key: value.replace("NETS", str(files / "nets.py")).replace("FILES", str(files)) if isinstance(value, str)
             else value for key, value in words.items()}  # fmt: skip
    if "weights" in words:
        words["weights"] = store.Path(words["weights"])
    with pytest.raises(Refusal, match=told.replace("NETS", ".*nets.py")) as refusal:
        kind, folder = kind_of(words["word"])
        open_holder(read(Asked(kind=kind, folder=folder, **words), how), how)
    assert refusal.value.code == code and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "word, told", [("0123abcd", "no run '0123abcd'"), ("nets.py", "names no function"), ("a/b", "is no run's folder")]
)
def test_words_that_name_nothing_are_refused(word, told):
    with pytest.raises(Refusal, match=told):
        kind_of(word)


# --- a run, and a module of one's own


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run of two epochs, probed by one of two."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    how = make_how({"data_dir": digits, "threads": 1})
    fields = {"model": "convmixer_nano", "model_kwargs": {"depth": 1}, "dataset": "digits", "epochs": 2, "lr": 4e-3}
    train(make_run(fields), folder, how)
    probe_runs.probe(folder, ["patch_shuffle"], how)
    return folder


def passport(word, how, names=(), folder=None, **fields):
    asked = read(Asked(word, "run" if folder else kind_of(word)[0], folder, **fields), how)
    return made.measure(open_holder(asked, how), names, how, speed=False, tell=lambda line: None)


def test_a_run_shows_the_numbers_of_its_probes_and_keeps_new_ones(trained, how):
    before = (trained / "probes/patch_shuffle.json").read_bytes()
    found = passport("", how, ["shift"], trained)
    assert (trained / "probes/patch_shuffle.json").read_bytes() == before and found.learned.kept == ("patch_shuffle",)
    said = page.record(found)["learned"]
    for name in ("shift", "patch_shuffle"):
        assert said["probes"][name] == json.loads((trained / f"probes/{name}.json").read_text())["values"]
    assert not probe_runs.missing(trained, ["shift", "patch_shuffle"])
    assert said["acc1"]["value"] == pytest.approx(said["of_record"], abs=0.5) and said["images"] == 500
    assert found.holder.title == "convmixer_nano depth=1" and found.declared.measured_on == "convmixer_nano"
    # Stale numbers are not shown as if they were of these weights.
    record = json.loads(before)
    store.write_json(trained / "probes/patch_shuffle.json", record | {"weights_sha256": "0" * 64})
    again = passport("", how, [], trained)
    assert "patch_shuffle" not in again.learned.values and "other weights" in again.learned.failed["patch_shuffle"]
    (trained / "probes/patch_shuffle.json").write_bytes(before)


def test_a_module_of_ones_own_has_the_numbers_of_the_notebook(files, how, digits, tmp_path):
    """The same images through two paths: the loader's, and arrays; costs are those of the module."""
    word = f"{files / 'nets.py'}:small"
    model = open_holder(read(Asked(word, "function", dataset="digits"), how), how).model
    torch.save({"state_dict": model.state_dict()}, tmp_path / "own.pth")
    found = passport(word, how, ["shift", "toeplitz"], dataset="digits", weights=tmp_path / "own.pth", images=100)
    batches = [(x.clone(), y.clone()) for x, y in found.holder.subject.images]
    images, labels = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    assert len(labels) == 100 == found.learned.images
    own = notebook.probe("shift", model, images, labels)
    assert found.learned.values["shift"] == own and found.learned.acc1 == own["acc"]
    assert found.learned.failed == {"toeplitz": "says nothing of a module of this kind"}
    macs = 8 * 64 * 9 + 8 * 64 * 72 + 80
    assert found.cost.counts["macs"] == macs and found.cost.counts["params"] == 80 + 584 + 90
    assert sum(part[2] for part in found.cost.parts) == macs


def test_random_weights_have_learned_nothing_and_the_command_is_told(files, how):
    found = passport(f"{files / 'nets.py'}:small", how, ["shift"], dataset="digits")
    assert found.learned.acc1 is None and "its weights are random" in found.learned.why
    assert "--weights FILE --data digits" in found.learned.why and found.learned.why in "".join(page.unknown(found))


def test_costs_are_those_of_profile_model(how):
    found = passport("mixer_nano", how)
    costs, _ = witnessed("mixer_nano", img_size=8, in_chans=1, num_classes=10)
    assert found.cost.counts == costs and not found.cost.why[:-1]


def test_the_usual_probes_are_there_and_all_and_none_are_words():
    assert (
        learned.wanted([]) == [*learned.USUAL] and learned.wanted(["none"]) == [] and "cka" in learned.wanted(["all"])
    )
    with pytest.raises(Refusal, match="unknown probe 'shif'"):
        learned.wanted(["shif"])
    assert cost.COUNTERS["fvcore"] == "fvcore_macs"


# --- the page


@pytest.fixture(scope="module")
def written(trained, digits, tmp_path_factory):
    """What the command leaves of a run."""
    env = {**os.environ, "SOFTMLP_DATA": str(digits), "SOFTMLP_RESULTS": str(tmp_path_factory.mktemp("results"))}
    command = [
        sys.executable,
        str(SCRIPT),
        str(trained),
        "--probes",
        "shift",
        "--rounds",
        "1",
        "-b",
        "8",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "about" in done.stderr.splitlines()[0] and "speed and memory" in done.stderr
    return store.Path(done.stdout.strip())


def test_the_page_its_pictures_and_its_numbers_are_written(written):
    names = {path.name for path in written.parent.iterdir()}
    pictures = {
        f"{name}.{kind}" for name in ("fields", "depth", "moves", "learned", "parts") for kind in ("svg", "pdf")
    }
    assert names == {"index.html", "passport.json"} | pictures and written.stat().st_size < 400_000
    assert all((written.parent / name).read_bytes().startswith(b"%PDF") for name in names if name.endswith("pdf"))
    said = json.loads((written.parent / "passport.json").read_text())
    text = written.read_text()
    assert f"{said['cost']['params']:,}" in text and said["cost"]["latency_ms"] > 0
    assert said["declared"]["gaps"]["pixels"] > 1e-4 > 1e-10 > said["declared"]["gaps"]["within"]
    assert said["forced"]["units"][-1]["unit"] == "logits" and "http" not in text.replace("http-equiv", "")


def test_the_page_opens_in_a_browser_without_a_fault(written):
    if browser.path() is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"the passport was not opened in a browser: no {' or '.join(browser.NAMES)}")
    with browser.Browser() as chromium:
        for width, dark in ((1280, False), (390, True)):
            shown = chromium.open(written.as_uri(), width=width, dark=dark)
            assert shown.faults() == [] and shown.requests() == [written.as_uri()]
            assert shown.run("document.documentElement.scrollWidth") <= width
            assert shown.run("document.querySelectorAll('figure svg').length") == 5
            ink = shown.run("getComputedStyle(document.querySelector('#moves svg text')).fill")
            assert (sum(map(int, ink[4:-1].split(","))) > 380) is dark  # letters show on the paper


def test_a_missing_data_set_is_one_line_at_once(digits):
    command = [sys.executable, str(SCRIPT), "timm/resnet18", "--data", "cifar100", "--data-dir", str(digits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == DATA
        and len(done.stderr.splitlines()) == 1
        and "make_beton.py --dataset cifar100" in done.stderr
    )
