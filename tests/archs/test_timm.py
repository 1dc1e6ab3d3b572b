"""Models of timm, one for each way in which they differ from ours, are counted, profiled and trained."""

import pytest
import torch
from timm.models import create_model
from torch import nn

import archs
from engine.cost.profile import profile, witnessed
from engine.data.ensure import ensure
from engine.errors import Refusal
from engine.folder.store import read_json, read_summary
from engine.models import preflight
from engine.optim import freeze_body, head_of
from engine.run import make_run
from engine.train import train

# kind -> name, image, arguments that make it small
KINDS = {
    "class attention": ("cait_xxs24_224", 32, {"depth": 2}),
    "attention pooling": ("vit_base_patch16_siglip_224", 32, {"depth": 1, "embed_dim": 24, "num_heads": 3}),
    "class tokens in a pyramid": ("pit_ti_224", 64, {"depth": [1, 1, 1]}),
    "two heads": ("deit_tiny_distilled_patch16_224", 32, {"depth": 1}),
    "two heads with BatchNorm": ("levit_128s", 32, {}),
    "two stems": ("crossvit_tiny_240", 240, {}),
    "fully convolutional": ("test_resnet", 32, {}),
    "window attention": ("swin_tiny_patch4_window7_224", 64, {"depths": [1, 1], "embed_dim": 24, "num_heads": [1, 2]}),
}
TRAINED = ["class attention", "attention pooling", "two heads", "two heads with BatchNorm", "fully convolutional"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_counted_and_profiled(kind):
    name, size, arguments = KINDS[kind]
    shape = {"img_size": size, "in_chans": 3, "num_classes": 7}
    costs = profile(f"timm/{name}", **shape, **arguments)
    seen, _ = witnessed(f"timm/{name}", **shape, **arguments)  # other counters agree
    assert {key: seen[key] for key in costs} == costs and seen["saved_bytes"] > 0
    model = archs.create(f"timm/{name}", **shape, **arguments)
    assert costs["params"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [*TRAINED, "two stems"])
def test_a_linear_probe_trains_what_timm_calls_the_classifier(kind):
    """That is what resetting it replaces."""
    name, size, arguments = KINDS[kind]
    model = archs.create(f"timm/{name}", img_size=size, num_classes=7, **arguments)
    before = {key: value.shape for key, value in model.named_parameters()}
    freeze_body(model)
    learning = {key for key, value in model.named_parameters() if value.requires_grad}
    model.reset_classifier(11)
    after = {key: value.shape for key, value in model.named_parameters()}
    changed = {key for key in before if before[key] != after[key]}
    heads = {key.rpartition(".")[0] for key in changed}
    assert changed and changed <= learning and len(heads) == (2 if kind.startswith("two") else 1)
    assert isinstance(head_of(model), nn.Module)


def test_a_model_with_two_heads_learns_the_mean_of_them_as_in_timm():
    """timm returns both to train on only after set_distilled_training, which is for a teacher."""
    model = create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=7, depth=1).train()
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    both = (model.head(features[:, 0]) + model.head_dist(features[:, 1])) / 2
    assert torch.allclose(model(x), both)


@pytest.mark.parametrize(
    ("kind", "more"),
    [(kind, {}) for kind in TRAINED]
    + [(kind, more) for kind in TRAINED if "two" in kind for more in ({"mode": "linear"}, {"body_lr_scale": 0.1})],
)
def test_every_kind_trains(kind, more, how, tmp_path):
    name, size, arguments = KINDS[kind]
    fields = {"model": f"timm/{name}", "model_kwargs": arguments, "img_size": size, "dataset": "digits"}
    run = make_run({**fields, "train_samples": 8, "batch_size": 4, "epochs": 1, **more})
    ensure("digits", size, how.data_dir, say=lambda line: None)
    preflight(run, tmp_path)
    train(run, tmp_path, how)
    assert len(read_summary(tmp_path)) == 1
    shape = {"img_size": size, "in_chans": 1, "num_classes": 10}
    told = read_json(tmp_path / "profile.json")
    assert ("trainable_params" in told) == (run.mode == "linear")
    told.pop("trainable_params", None)
    assert told == profile(run.model, **shape, **arguments)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("timm/crossvit_tiny_240", 32, "fails on an image of 32 px: "),
        ("timm/halonet26t", 32, "fails on an image of 32 px: AssertionError in halo_attn.py: .*assert"),
        ("timm/gemma4_vit_167m_enc", 96, r"puts out \(1, .*\) for an image, not 10 numbers"),
    ],
)
def test_what_cannot_be_trained_is_one_line(name, size, words):
    with pytest.raises(Refusal, match=words) as caught:
        profile(name, img_size=size, in_chans=3, num_classes=10)
    assert "\n" not in str(caught.value) and name in str(caught.value)
