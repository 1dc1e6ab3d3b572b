"""The passport of a module: fields and moves against closed forms, numbers against other scripts', the page."""

import json
import os
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis import notebook
from analysis.bias import probe_runs
from analysis.passport import cost, declared, forced, inside, learned, made, page
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


def measured(model, side=16, chans=3, patch=None):
    return forced.measure(model, (chans, side, side), patch, tell=lambda line: None)


def verdicts(found, move):
    """By unit, of those that say something."""
    return {each.unit: each.verdict(found.dtype) for each in found.moves[move] if each.verdict(found.dtype)}


def convs(*layers, mode="zeros", chans=3):
    """Convolutions of (kernel, stride, dilation), then a classifier of their mean."""
    made = []
    for kernel, stride, dilation in layers:
        padding = dilation * (kernel // 2)
        made += [nn.Conv2d(chans, 6, kernel, stride, padding, dilation, padding_mode=mode), nn.ReLU(inplace=True)]
        chans = 6
    return nn.Sequential(*made, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


# --- receptive field


@pytest.mark.parametrize(
    "layers", [[(3, 1, 1)] * 4, [(5, 1, 1), (3, 2, 1), (3, 1, 2)], [(7, 2, 1), (1, 1, 1), (3, 2, 1)]]
)
def test_the_field_of_convolutions_is_that_of_the_closed_form(layers):
    """1 + sum of (kernel - 1) x dilation x the strides before (Araujo, Norris and Sim, Distill 2019)."""
    found = measured(convs(*layers), side=48).fields
    size, stride = 1, 1
    for own, (kernel, step, dilation) in zip(found, layers, strict=False):
        size, stride = size + (kernel - 1) * dilation * stride, stride * step
        assert own.extent == (size, size), own.name
        assert own.grid == (48 // stride, 48 // stride)
    assert found[-1].name == inside.LOGITS and found[-1].extent == (48, 48)


def test_the_field_is_what_changing_pixels_one_by_one_finds():
    """Of a ResNet's stem, with a stride and a pooling by the maximum; 7, 11 and 27 px by the closed form."""
    resnet = archs.create("timm/resnet18", num_classes=5)
    names = ("conv1", "bn1", "act1", "maxpool", "layer1", "global_pool")
    layers = OrderedDict((name, getattr(resnet, name)) for name in names)
    model = nn.Sequential(layers | {"layer1": resnet.layer1[:1], "head": nn.Linear(64, 5)})
    model = forced.drawn_anew(model).eval().requires_grad_(False).double()
    x_BCHW = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fields = {each.name: each for each in forced.reach(model, x_BCHW)}
    assert [fields[name].extent for name in ("conv1", "maxpool", "layer1.0")] == [(7, 7), (11, 11), (27, 27)]
    changed = x_BCHW[:1].repeat(256, 1, 1, 1)
    for image, (row, column) in enumerate(np.ndindex(16, 16)):
        changed[image, :, 24 + row, 24 + column] += 1
    with torch.no_grad():
        middle, others = (model[:3](x)[:, :, 16, 16] for x in (x_BCHW[:1], changed))
    reads = np.zeros((64, 64), bool)
    reads[24:40, 24:40] = (others != middle).any(1).view(16, 16).numpy()
    assert (reads == (fields["conv1"].mass > 0)).all() and reads.sum() == 49


def test_what_is_constant_reads_nothing_and_half_an_image_is_half():
    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 8, 4)

        def forward(self, x_BCHW):
            return self.head(x_BCHW[..., :8].flatten(1))

    (own,) = measured(Left()).fields
    assert own.extent == (16, 8) and own.record["share"] == 0.5 and 0.4 < own.record["share_95"] < 0.5


def test_outputs_are_read_as_maps_by_their_shapes():
    y = torch.arange(2 * 4 * 8 * 6.0)
    assert torch.equal(inside.as_map(y.view(2, 6, 4, 8), (8, 16)), y.view(2, 6, 4, 8).permute(0, 2, 3, 1))
    assert torch.equal(inside.as_map(y.view(2, 4, 8, 6), (8, 16)), y.view(2, 4, 8, 6))
    square = torch.randn(2, 8, 8, 8)
    assert torch.equal(inside.as_map(square, (16, 16)), square.permute(0, 2, 3, 1))
    assert torch.equal(inside.as_map(square, (16, 16), channels_last=True), square)
    tokens = torch.randn(2, 17, 5)  # a class token before 4 x 4
    assert torch.equal(inside.as_map(tokens, (16, 16)), tokens[:, 1:].unflatten(1, (4, 4)))
    assert torch.equal(inside.as_map(tokens[:, 1:], (16, 16)), tokens[:, 1:].unflatten(1, (4, 4)))
    assert (
        inside.as_map(torch.randn(2, 10), (16, 16)) is None and inside.as_map(torch.randn(2, 9, 1, 1), (16, 16)) is None
    )


def test_blocks_stay_whole_and_containers_are_taken_apart():
    resnet = archs.create("timm/resnet18", num_classes=5).eval()
    names = [each.name for each in inside.units(resnet, torch.randn(1, 3, 32, 32))]
    assert names[:3] == ["conv1", "maxpool", "layer1.0"] and names[-3:] == ["layer4.0", "layer4.1", inside.LOGITS]
    vit = archs.create("timm/vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2).eval()
    found = inside.units(vit, torch.randn(1, 3, 32, 32))
    assert [each.name for each in found] == ["patch_embed", "blocks.0", "blocks.1", inside.LOGITS]
    assert found[1].output.shape == (1, 5, 192) and found[1].places.shape == (1, 2, 2, 192)


# --- moves


def test_convolutions_follow_shifts_by_their_stride_away_from_the_border():
    found = measured(convs((3, 1, 1), (3, 2, 1), (3, 1, 1)), side=32)
    assert verdicts(found, "shift 1") == {"0": "exact", "logits": "broken"}
    assert verdicts(found, "shift 2") == {"0": "exact", "2": "exact", "4": "exact", "logits": "broken"}
    assert found.exact_to("shift 2") == "4" and found.exact_to("mirror") is None
    assert {*verdicts(found, "mirror").values()} == {"broken"} == {*verdicts(found, "pixels").values()}


def test_where_every_field_meets_the_border_larger_images_tell():
    """Fields of 7, 13 and 19 px in images of 16; a module that is bound to its size is not asked with others."""
    model = convs((7, 1, 1), (7, 1, 1), (7, 1, 1))
    found = measured(model)
    assert verdicts(found, "shift 1") == {"0": "exact", "2": "exact", "4": "exact", "logits": "broken"}
    assert [each.px for each in found.moves["shift 1"]] == [None, None, 64, None, None]

    class Bound(nn.Sequential):
        def forward(self, x_BCHW):
            assert x_BCHW.shape[-1] == 16
            return super().forward(x_BCHW)

    bound = measured(Bound(*model))
    assert verdicts(bound, "shift 1") == {"0": "exact", "2": "exact", "logits": "broken"}
    assert bound.moves["shift 1"][2].why == forced.BORDER


def test_around_the_border_convolutions_and_their_mean_follow_every_shift():
    found = measured(convs((3, 1, 1), (5, 1, 1), mode="circular"))
    assert verdicts(found, "shift 1") == {"0": "exact", "2": "exact", "logits": "exact"}


def test_a_weight_of_its_own_for_each_place_breaks_the_shift():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.placed, self.body = nn.Parameter(torch.ones(3, 16, 16)), convs((3, 1, 1))

        def forward(self, x_BCHW):
            return self.body(x_BCHW * self.placed)

    assert verdicts(measured(Placed()), "shift 1")["body.0"] == "broken"


def test_pixels_each_by_itself_follow_every_order_of_them():
    found = measured(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    )
    for move in found.moves:
        assert verdicts(found, move) == {"0": "exact", "logits": "exact"}, move


def test_a_bag_of_patches_follows_their_order_and_a_position_breaks_it():
    class Patches(nn.Module):
        def __init__(self, placed):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.place = nn.Parameter(torch.zeros(16, 8)) if placed else 0
            self.head = nn.Linear(8, 5)

        def forward(self, x_BCHW):
            return self.head((self.embed(x_BCHW).flatten(2).mT + self.place).relu().mean(1))

    bag, placed = measured(Patches(False)), measured(Patches(True))
    assert bag.patch == 4 and verdicts(bag, "patches") == {"embed": "exact", "logits": "exact"}
    assert (
        verdicts(bag, "shift 4") == {"embed": "exact", "logits": "exact"}
        and verdicts(bag, "pixels")["logits"] == "broken"
    )
    assert verdicts(placed, "patches") == {"embed": "exact", "logits": "broken"}


def test_a_flat_network_has_no_map_and_its_training_is_blind_to_the_order_of_pixels():
    found = measured(nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 5)), side=8)
    assert [each.record["share"] for each in found.fields] == [1, 1] and found.answer("shift 1", logits=False) is None
    assert {found.answer(move, logits=True).verdict(found.dtype) for move in found.moves} == {"broken"}
    own = declared.of("mlp_1m", {"img_size": 32})
    assert (
        own.measured_on == "mlp_nano"
        and {"pixels", "patches", "flip"} <= {*own.passing}
        and own.claims["stem"] == "dense"
    )
    assert "pixels" not in declared.of("convmixer_nano", {}).passing
    claims, axes = declared.said("lattice_nano", {"mixer": "banded"})
    assert not claims and axes["places"] == "own" and axes["reach"].startswith("window")
    assert "declares no relabeling" in declared.of("timm/resnet18", {}).why and "declares" in declared.of("", {}).why


def test_buffers_that_are_not_learned_stay_and_statistics_are_drawn():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.register_buffer("mask", torch.full((3,), 7.0))
    forced.drawn_anew(model)
    assert (model.mask == 7).all() and (model[1].running_var != 1).all() and (model[1].weight != 1).all()


def test_a_module_that_answers_at_random_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 5)

        def forward(self, x_BCHW):
            return self.head(x_BCHW.flatten(1)) + torch.rand(1)

    with pytest.raises(RuntimeError, match="answers the same images differently"):
        measured(Noisy(), side=8)


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
