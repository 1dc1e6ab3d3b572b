"""What a module is forced to be: fields and moves against closed forms and against changing pixels one by one."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis.passport import declared, forced, inside


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
