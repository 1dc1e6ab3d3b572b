"""Families on a grid of tokens against their formulas, written independently with loops over places."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import archs
from analysis.probes.receptive_field import randomise
from archs import cyclemlp
from tests.formulas import State, assert_same, doubled, gelu_of, layer_norm_of, linear_of, random_images


def _patches(state: State, key: str, x: Tensor, side: int) -> Tensor:
    """Linear projection of disjoint patches, each read as (channel, row, column): BCHW -> BHWC."""
    rows = [
        [x[:, :, r : r + side, c : c + side].flatten(1) for c in range(0, x.shape[3], side)]
        for r in range(0, x.shape[2], side)
    ]
    return torch.stack([torch.stack([linear_of(state, key, patch) for patch in row], 1) for row in rows], 1)


def _convolve(state: State, key: str, x: Tensor, stride: int, padding: int) -> Tensor:
    """Convolution of x_BHWC, place by place, zeros beyond the border."""
    weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
    size = weight.shape[-1]
    wide = x.new_zeros(len(x), x.shape[1] + 2 * padding, x.shape[2] + 2 * padding, x.shape[3])
    wide[:, padding : padding + x.shape[1], padding : padding + x.shape[2]] = x
    height, width = ((length - size) // stride + 1 for length in wide.shape[1:3])
    y = x.new_zeros(len(x), height, width, len(weight))
    for i in range(height):
        for j in range(width):
            window = wide[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = torch.einsum("bpqi,oipq->bo", window, weight) + bias
    return y


def _mlp(state: State, key: str, x: Tensor) -> Tensor:
    return linear_of(state, f"{key}.fc2", gelu_of(linear_of(state, f"{key}.fc1", x)))


def _logits(state: State, x: Tensor, eps: float = 1e-5) -> Tensor:
    return linear_of(state, "head", layer_norm_of(state, "norm", x, eps).mean((1, 2)))


def _weigh(state: State, key: str, branches: list[Tensor]) -> Tensor:
    """sum_k a_k * branch_k with a = softmax over k of the output channel * 3 + k of an MLP of the mean of their sum."""
    logits = _mlp(state, key, sum(branches).mean((1, 2)))
    share = torch.exp(logits)
    y = torch.zeros_like(branches[0])
    for channel in range(y.shape[-1]):
        total = share[:, 3 * channel : 3 * channel + 3].sum(1)
        for k, branch in enumerate(branches):
            y[..., channel] += (share[:, 3 * channel + k] / total)[:, None, None] * branch[..., channel]
    return y


def _permute(state: State, key: str, x: Tensor) -> Tensor:
    """Permute-MLP by its indices: channel g * S + s at (h, w); rows are read as h * S + s, columns as w * S + s."""
    side, s = x.shape[1], x.shape[3] // x.shape[1]
    rows, columns = torch.zeros_like(x), torch.zeros_like(x)
    for g in range(side):
        segment = slice(g * s, g * s + s)
        for fixed in range(side):
            read = torch.cat([x[:, h, fixed, segment] for h in range(side)], 1) @ state[f"{key}.mlp_h.weight"].T
            for h in range(side):
                rows[:, h, fixed, segment] = read[:, h * s : h * s + s]
            read = torch.cat([x[:, fixed, w, segment] for w in range(side)], 1) @ state[f"{key}.mlp_w.weight"].T
            for w in range(side):
                columns[:, fixed, w, segment] = read[:, w * s : w * s + s]
    mixed = _weigh(state, f"{key}.reweight", [rows, columns, x @ state[f"{key}.mlp_c.weight"].T])
    return linear_of(state, f"{key}.proj", mixed)


@pytest.mark.proves("the function, against an independent reference", "vip")
@pytest.mark.parametrize(("dim", "depth"), [([8], [2]), ([8, 12], [1, 2]), ([8, 8, 16], [1, 1, 1])])
def test_vip_equals_its_formula(dim, depth):
    model = randomise(archs.create("vip_nano", dim=dim, depth=depth, in_chans=3))
    state = doubled(model)

    def reference(x: Tensor) -> Tensor:
        z, place = _patches(state, "stem.proj", x, 2), 0
        for i, layers in enumerate(depth):
            if i and dim[i] != dim[i - 1]:
                z = _convolve(state, f"stages.{place}.layer", z, stride=2, padding=0)
                place += 1
            for j in range(layers):
                block = f"stages.{place}.{j}"
                z = z + _permute(state, f"{block}.0.branch", layer_norm_of(state, f"{block}.0.norm", z))
                z = z + _mlp(state, f"{block}.1.branch", layer_norm_of(state, f"{block}.1.norm", z))
            place += 1
        return _logits(state, z)

    assert_same(model, reference, random_images(3, 3, 8, 8))


def _cycle(state: State, key: str, x: Tensor, axis: int, steps: int) -> Tensor:
    """y[o, h, w] = b[o] + sum_i W[o, i] x[i, h, w + d(i)] along the axis; d counts 0, 1, ..., then the negative."""
    distances = [*range(steps // 2 + 1), *range(-(steps // 2), 0)]
    read = torch.zeros_like(x)
    for channel in range(x.shape[3]):
        distance = distances[channel % steps]
        for place in range(x.shape[axis]):
            if 0 <= place + distance < x.shape[axis]:
                read.select(axis, place)[..., channel] = x.select(axis, place + distance)[..., channel]
    return linear_of(state, key, read)


@pytest.mark.proves("the function, against an independent reference", "cyclemlp")
@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("skeleton", ["overlap", "patch", "swin"])
def test_cyclemlp_equals_its_formula(skeleton, steps):
    given = {"img_size": (16, 24), "patch_size": 4, "num_classes": 5, "mlp_ratio": [2.0, 3.0]}
    model = archs.create("cyclemlp_b1", dim=[8, 12], depth=[1, 2], steps=steps, skeleton=skeleton, **given)
    state = doubled(randomise(model))

    def reference(x: Tensor) -> Tensor:
        if skeleton == "overlap":
            z = _convolve(state, "stem.proj", x.permute(0, 2, 3, 1), stride=4, padding=2)
        elif skeleton == "patch":
            z = _patches(state, "stem.proj", x, 4)
        else:
            z = layer_norm_of(state, "stem.1", _patches(state, "stem.0.proj", x, 4))
        assert z.shape[1:3] == (4, 6)
        for block in ("stages.0.0", None, "stages.2.0", "stages.2.1"):
            if block is None and skeleton != "swin":
                z = _convolve(state, "stages.1.layer", z, stride=2, padding=1)
            elif block is None:
                # As in Swin: top left, bottom left, top right, bottom right.
                four = [z[:, 0::2, 0::2], z[:, 1::2, 0::2], z[:, 0::2, 1::2], z[:, 1::2, 1::2]]
                z = layer_norm_of(state, "stages.1.norm", torch.cat(four, -1)) @ state["stages.1.reduction.weight"].T
            else:
                key, normed = f"{block}.0.branch", layer_norm_of(state, f"{block}.0.norm", z)
                branches = [
                    _cycle(state, f"{key}.sfc_h", normed, 2, steps),
                    _cycle(state, f"{key}.sfc_w", normed, 1, steps),
                    normed @ state[f"{key}.mlp_c.weight"].T,
                ]
                if skeleton == "swin":
                    mixed = sum(branches) + state[f"{key}.mlp_c.bias"]
                else:
                    mixed = _weigh(state, f"{key}.reweight", branches)
                z = z + linear_of(state, f"{key}.proj", mixed)
                z = z + _mlp(state, f"{block}.1.branch", layer_norm_of(state, f"{block}.1.norm", z))
        return _logits(state, z)

    assert_same(model, reference, random_images(3, 3, 16, 24))


def test_shift_has_the_gradient_of_its_formula():
    """The layer's own backward against autograd through the formula, and twice differentiable."""
    layer = randomise(cyclemlp.CycleFc(8, axis=1, steps=5)).double()
    x, direction = random_images(2, 4, 3, 8).requires_grad_(), random_images(2, 4, 3, 8)
    (found,) = torch.autograd.grad((layer(x) * direction).sum(), x)
    (expected,) = torch.autograd.grad((_cycle(_layer_state(layer), "fc", x, 1, 5) * direction).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.autograd.gradgradcheck(layer, (x,))


def _layer_state(layer: nn.Module) -> State:
    return {f"fc.{key}": value.detach() for key, value in layer.named_parameters()}


def _neighbours(state: State, key: str, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            y[:, i, j] = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((1, 2)) - x[:, i, j]
    return y


def _shifted(state: State, key: str, x: Tensor) -> Tensor:
    """Quarter by quarter from above, below, left, right; the place itself where there is none."""
    h, y = gelu_of(linear_of(state, f"{key}.0", x)), torch.zeros_like(x)
    (height, width), quarter = x.shape[1:3], x.shape[3] // 4
    for i in range(height):
        for j in range(width):
            for k, (row, column) in enumerate([(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]):
                place = h[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                y[:, i, j, k * quarter : (k + 1) * quarter] = place[:, k * quarter : (k + 1) * quarter]
    return linear_of(state, f"{key}.3", y)


def _random(state: State, key: str, x: Tensor) -> Tensor:
    return torch.einsum("mn,bnc->bmc", state[f"{key}.weight"], x.flatten(1, 2)).reshape(x.shape)


@pytest.mark.proves("the function, against an independent reference")
@pytest.mark.parametrize(
    ("family", "mixer"),
    [
        ("identityformer", lambda state, key, x: x),
        ("randformer", _random),
        ("poolformer", _neighbours),
        ("s2mlp", _shifted),
    ],
)
def test_metaformers_equal_their_formula(family, mixer):
    model = randomise(archs.create(f"{family}_nano", img_size=(8, 12), dim=12, in_chans=3))
    state, norm = doubled(model), partial(layer_norm_of, eps=1e-6)

    def reference(x: Tensor) -> Tensor:
        z = _patches(state, "stem.proj", x, 2)
        for i in range(3):
            block = f"stages.0.{i}"
            z = z + mixer(state, f"{block}.0.branch", norm(state, f"{block}.0.norm", z))
            z = z + _mlp(state, f"{block}.1.branch", norm(state, f"{block}.1.norm", z))
        return _logits(state, z, eps=1e-6)

    assert_same(model, reference, random_images(3, 3, 8, 12))


def _filtered(weight: Tensor, x: Tensor) -> Tensor:
    """The half spectrum `weight` applied by sums over all places and frequencies, the other half its conjugate."""
    height, width = x.shape[1:3]
    rows = torch.arange(height, dtype=torch.float64)[:, None] * torch.arange(height) / height
    columns = torch.arange(width, dtype=torch.float64)[:, None] * torch.arange(width // 2 + 1) / width
    rows, columns = torch.exp(2j * torch.pi * rows), torch.exp(2j * torch.pi * columns)
    spectrum = torch.einsum("bhwc,hk,wl->bklc", x + 0j, rows.conj(), columns.conj())
    back = torch.einsum("bklc,hk->bhlc", spectrum * torch.complex(weight[..., 0], weight[..., 1]), rows)
    # A frequency that is its own mirror image counts once, every other twice, for itself and its conjugate.
    times = torch.tensor([1.0 if (2 * k) % width == 0 else 2.0 for k in range(width // 2 + 1)], dtype=torch.float64)
    return torch.einsum("bhlc,wl,l->bhwc", back, columns, times + 0j).real / (height * width)


@pytest.mark.proves("the function, against an independent reference", "gfnet")
@pytest.mark.parametrize("img_size", [(8, 12), (6, 10)])
@pytest.mark.parametrize("pos_embed", [True, False])
def test_gfnet_equals_its_formula(pos_embed, img_size):
    given = {"img_size": img_size, "dim": 12, "in_chans": 3, "pos_embed": pos_embed}
    model = randomise(archs.create("gfnet_nano", **given))
    state, norm = doubled(model), partial(layer_norm_of, eps=1e-6)

    def reference(x: Tensor) -> Tensor:
        if pos_embed:
            z = _patches(state, "stem.0.proj", x, 2) + state["stem.1.pos_embed"]
        else:
            z = _patches(state, "stem.proj", x, 2)
        for i in range(3):
            block = f"stages.0.{i}"
            mixed = _filtered(state[f"{block}.branch.0.complex_weight"], norm(state, f"{block}.norm", z))
            z = z + _mlp(state, f"{block}.branch.2", norm(state, f"{block}.branch.1", mixed))
        return _logits(state, z, eps=1e-6)

    assert_same(model, reference, random_images(3, 3, *img_size))
