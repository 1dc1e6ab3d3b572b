"""Each family computes what an independent implementation computes from the same weights, all of them random.

The references are timm's classes where timm has the family, and otherwise the formulas of the paper written out here.
"""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers import GatedMlp
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import archs
from analysis.probes.receptive_field import randomise
from archs import cyclemlp

State = dict[str, Tensor]


def _images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _assert_same(model: nn.Module, reference: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Equal to rounding in float64, and in float32 as near as float32 gets."""
    with torch.no_grad():
        expected = reference(x)
        found = model.double().eval()(x)
        rounded = model.float()(x.float()).double()
    assert expected.std() > 1e-3
    assert ((found - expected).norm() / expected.norm()).item() < 1e-12
    assert ((rounded - expected).norm() / expected.norm()).item() < 1e-5


# --- against timm


def _load(reference: nn.Module, state: State, renames: list[tuple[str, str]]) -> nn.Module:
    """The reference with our weights, every key renamed and every shape made its own; strict."""
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    renamed = {}
    for key, value in state.items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        renamed[key] = value.reshape(shapes[key])
    reference.load_state_dict(renamed, strict=True)
    return reference.double().eval()


BLOCKS = (r"^stages\.0\.", "blocks.")
MIXER = [
    BLOCKS,
    (r"(\d)\.0\.norm", r"\1.norm1"),
    (r"(\d)\.1\.norm", r"\1.norm2"),
    (r"\.0\.branch\.mix\.", ".mlp_tokens."),
    (r"\.1\.branch\.", ".mlp_channels."),
]
RESMLP = [
    BLOCKS,
    (r"(\d)\.0\.norm", r"\1.norm1"),
    (r"(\d)\.1\.norm", r"\1.norm2"),
    (r"\.0\.branch\.mix\.", ".linear_tokens."),
    (r"\.1\.branch\.", ".mlp_channels."),
    (r"\.0\.scale\.gamma", ".ls1"),
    (r"\.1\.scale\.gamma", ".ls2"),
]
GMLP = [
    BLOCKS,
    (r"branch\.0\.", "mlp_channels.fc1."),
    (r"branch\.2\.norm", "mlp_channels.gate.norm"),
    (r"branch\.2\.spatial\.mix", "mlp_channels.gate.proj"),
    (r"branch\.3\.", "mlp_channels.fc2."),
]
CONVMIXER = [
    (r"^stem\.0\.proj", "stem.0"),
    (r"^stem\.1\.layer\.1", "stem.2"),
    BLOCKS,
    (r"\.0\.branch\.layer\.", ".0.fn."),
    (r"\.1\.layer\.0\.", ".1."),
    (r"\.1\.layer\.2\.", ".3."),
]
DEIT = [
    (r"^stem", "patch_embed"),
    BLOCKS,
    (r"(\d)\.0\.norm", r"\1.norm1"),
    (r"(\d)\.1\.norm", r"\1.norm2"),
    (r"\.0\.branch\.", ".attn."),
    (r"\.1\.branch\.", ".mlp."),
]
SIZES = {"img_size": 8, "patch_size": 2, "num_classes": 5, "in_chans": 3}


@pytest.mark.parametrize(
    ("name", "timm_args", "renames"),
    [
        ("mixer_nano", {}, MIXER),
        ("resmlp_nano", {"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4}, RESMLP),
        ("gmlp_nano", {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 6}, GMLP),
    ],
)
def test_token_mixing_equals_timm(name, timm_args, renames):
    model = randomise(archs.create(name, dim=24, depth=2, num_classes=5, in_chans=3))
    reference = MlpMixer(**SIZES, num_blocks=2, embed_dim=24, **timm_args)
    _assert_same(model, _load(reference, model.state_dict(), renames), _images(3, 3, 8, 8))


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_convmixer_equals_timm(act):
    model = randomise(archs.create("convmixer_nano", dim=24, depth=2, num_classes=5, in_chans=3, act=act))
    layer = {"gelu": nn.GELU, "relu": nn.ReLU}[act]
    reference = ConvMixer(24, 2, kernel_size=3, patch_size=2, num_classes=5, act_layer=layer)
    reference = _load(reference, model.state_dict(), CONVMIXER)
    _assert_same(model, reference, _images(3, 3, 8, 8))
    # With the statistics of the batch, and these then remembered, too.
    x = _images(3, 3, 8, 8)
    assert torch.allclose(model.double().train()(x), reference.train()(x), rtol=1e-11)
    ours = _load(ConvMixer(24, 2, kernel_size=3, patch_size=2, num_classes=5), model.state_dict(), CONVMIXER)
    assert all(torch.allclose(value, ours.state_dict()[key]) for key, value in reference.state_dict().items())


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_deit_equals_timm(pool):
    model = randomise(archs.create("deit_nano", dim=24, num_classes=5, in_chans=3, global_pool=pool))
    reference = VisionTransformer(
        **SIZES, embed_dim=24, depth=2, num_heads=4, global_pool=pool, class_token=pool == "token", fc_norm=False
    )
    reference = _load(reference, model.state_dict(), DEIT)
    x = _images(3, 3, 8, 8)
    _assert_same(model, reference, x)
    tokens = reference.forward_features(x)[:, -16:]
    assert torch.allclose(model.double().features(x), tokens.unflatten(1, (4, 4)), rtol=1e-11)


# --- against the formulas


def _linear(state: State, key: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, state[f"{key}.weight"].flatten(1)) + state[f"{key}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def _layer_norm(state: State, key: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps) ** 0.5 * state[f"{key}.weight"] + state[f"{key}.bias"]


def _batch_norm(state: State, key: str, x: Tensor, training: bool = False) -> Tensor:
    """Over a batch of vectors; in training it also moves the running statistics in `state`, by a tenth."""
    mean, variance = state[f"{key}.running_mean"], state[f"{key}.running_var"]
    if training:
        now, spread = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        mean.mul_(0.9).add_(0.1 * now)
        variance.mul_(0.9).add_(0.1 * spread * len(x) / (len(x) - 1))
        mean, variance = now, spread
    return (x - mean) / (variance + 1e-5) ** 0.5 * state[f"{key}.weight"] + state[f"{key}.bias"]


def _doubled(model: nn.Module) -> State:
    return {key: value.double().clone() for key, value in model.state_dict().items()}


def _trunk(state: State, z: Tensor, depth: int) -> Tensor:
    """Inverted bottlenecks, then the head without a norm."""
    for i in range(depth):
        block = f"stages.0.{i}"
        hidden = _gelu(_linear(state, f"{block}.branch.fc1", _layer_norm(state, f"{block}.norm", z)))
        z = z + _linear(state, f"{block}.branch.fc2", hidden)
    return _linear(state, "head", z)


def test_bmlp_equals_its_formula():
    model = randomise(archs.create("bmlp_nano", dim=16, depth=3, in_chans=3, expansion=3))
    state = _doubled(model)
    _assert_same(model, lambda x: _trunk(state, _linear(state, "stem.proj", x.flatten(1)), 3), _images(3, 3, 8, 8))


@pytest.mark.parametrize("shared", [True, False])
def test_patchmlp_equals_its_formula(shared):
    model = randomise(archs.create("patchmlp_nano", img_size=(8, 12), dim=48, in_chans=3, shared=shared))
    state = _doubled(model)

    def reference(x: Tensor) -> Tensor:
        embedded = []
        for row in range(4):
            for column in range(6):
                patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
                if shared:
                    embedded.append(_linear(state, "stem.0.proj", patch))
                else:
                    weight, bias = state["stem.0.weight"][row, column], state["stem.0.bias"][row, column]
                    embedded.append(patch @ weight.T + bias)
        return _trunk(state, torch.cat(embedded, 1), 2)

    _assert_same(model, reference, _images(3, 3, 8, 12))


def test_standard_mlp_equals_its_formula():
    model = randomise(archs.create("mlp_nano", dim=16, depth=4, in_chans=3))
    state = _doubled(model)

    def reference(x: Tensor) -> Tensor:
        z = _linear(state, "stem.0.proj", x.flatten(1))
        for i in range(3):
            z = _linear(state, f"stages.0.{i}.2", _gelu(_layer_norm(state, f"stages.0.{i}.0", z)))
        return _linear(state, "head", z)

    _assert_same(model, reference, _images(3, 3, 8, 8))


def test_two_and_three_layer_mlps_equal_their_formula():
    for name, depth in (("mlp_two", 1), ("mlp_three", 2)):
        model = randomise(archs.create(name))
        state = _doubled(model)

        def reference(x: Tensor, state: State = state, depth: int = depth) -> Tensor:
            h = _linear(state, "stem.0.proj", x.flatten(1)).relu()
            for i in range(depth - 1):
                h = _linear(state, f"stages.0.{i}.0", h).relu()
            return _linear(state, "head", h)

        _assert_same(model, reference, _images(3, 1, 28, 28))


def _six(state: State, x: Tensor, training: bool = False) -> Tensor:
    """y = W6 h5 with one BatchNorm per width: 512 for layers 1 and 2, 256 for 3 and 4, 128 for 5."""
    norm = partial(_batch_norm, state, training=training)
    norm512, norm256, norm128 = "stem.2.layer", "stages.0.1.2.layer", "stages.0.3.2.layer"
    h1 = norm(norm512, _linear(state, "stem.0.proj", x.flatten(1)).relu())
    h2 = norm(norm512, _linear(state, "stages.0.0.branch.0", h1).relu()) + h1
    h3 = norm(norm256, _linear(state, "stages.0.1.0", h2).relu())
    h4 = norm(norm256, _linear(state, "stages.0.2.branch.0", h3).relu()) + h3
    h5 = norm(norm128, _linear(state, "stages.0.3.0", h4).relu())
    return _linear(state, "head", h5)


SMALL_SIX = {"img_size": 4, "dim": [20, 20, 12, 12, 8]}


def test_six_layer_mlp_equals_its_formula():
    model = randomise(archs.create("mlp_six", **SMALL_SIX))
    state = _doubled(model)
    _assert_same(model, lambda x: _six(state, x), _images(3, 3, 4, 4))


def test_shared_batchnorm_learns_from_every_layer_of_its_width():
    model = randomise(archs.create("mlp_six", **SMALL_SIX)).double().train()
    state = _doubled(model)
    x = _images(6, 3, 4, 4)
    assert torch.allclose(model(x), _six(state, x, training=True), rtol=1e-11)
    after = model.state_dict()
    for key in ("stem.2.layer", "stages.0.1.2.layer", "stages.0.3.2.layer"):
        assert torch.allclose(after[f"{key}.running_mean"], state[f"{key}.running_mean"], rtol=1e-11)
        assert torch.allclose(after[f"{key}.running_var"], state[f"{key}.running_var"], rtol=1e-11)


def test_twelve_layer_mlp_equals_its_formula():
    widths = [24, 24, 16, 16, 16, 16, 12, 12, 8, 8, 8]
    model = randomise(archs.create("mlp_twelve", img_size=4, dim=widths))
    state = _doubled(model)
    norms = {24: "stem.2.layer", 16: "stages.0.1.2.layer", 12: "stages.0.5.2.layer", 8: "stages.0.7.2.layer"}

    def reference(x: Tensor) -> Tensor:
        h = _batch_norm(state, norms[24], _linear(state, "stem.0.proj", x.flatten(1)).relu())
        for i, width in enumerate(widths[1:]):
            h = _batch_norm(state, norms[width], _linear(state, f"stages.0.{i}.0", h).relu())
        return _linear(state, "head", h)

    _assert_same(model, reference, _images(3, 3, 4, 4))


@pytest.mark.parametrize("removed", [(0,), (1, 2), (0, 1, 2)])
def test_deit_with_removed_attention_equals_its_formula(removed):
    model = randomise(archs.create("deit_nano", dim=12, depth=3, num_heads=3, mlp_layers=removed))
    state = _doubled(model)
    norm = partial(_layer_norm, state, eps=1e-6)

    def attention(key: str, x: Tensor) -> Tensor:
        heads = []
        for head in _linear(state, f"{key}.qkv", x).reshape(*x.shape[:2], 3, 3, 4).unbind(3):
            q, k, v = head.unbind(2)
            weights = torch.exp(q @ k.transpose(1, 2) / 4**0.5)
            heads.append(weights / weights.sum(-1, keepdim=True) @ v)
        return _linear(state, f"{key}.proj", torch.cat(heads, -1))

    def reference(x: Tensor) -> Tensor:
        patches = [x[:, :, r : r + 2, c : c + 2].flatten(1) for r in range(0, 8, 2) for c in range(0, 8, 2)]
        patches = _linear(state, "stem.proj", torch.stack(patches, 1))
        z = torch.cat([state["cls_token"].expand(len(x), 1, -1), patches], 1) + state["pos_embed"]
        for i in range(3):
            block = f"stages.0.{i}"
            z = 2 * z if i in removed else z + attention(f"{block}.0.branch", norm(f"{block}.0.norm", z))
            hidden = _gelu(_linear(state, f"{block}.1.branch.fc1", norm(f"{block}.1.norm", z)))
            z = z + _linear(state, f"{block}.1.branch.fc2", hidden)
        return _linear(state, "head", norm("norm", z)[:, 0])

    _assert_same(model, reference, _images(3, 1, 8, 8))
    assert not any(re.match(rf"stages\.0\.({'|'.join(map(str, removed))})\.0\.", key) for key in state)


def _patches(state: State, key: str, x: Tensor, side: int) -> Tensor:
    """Linear projection of disjoint patches, each read as (channel, row, column): BCHW -> BHWC."""
    rows = [
        [x[:, :, r : r + side, c : c + side].flatten(1) for c in range(0, x.shape[3], side)]
        for r in range(0, x.shape[2], side)
    ]
    return torch.stack([torch.stack([_linear(state, key, patch) for patch in row], 1) for row in rows], 1)


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
    return _linear(state, f"{key}.fc2", _gelu(_linear(state, f"{key}.fc1", x)))


def _logits(state: State, x: Tensor, eps: float = 1e-5) -> Tensor:
    return _linear(state, "head", _layer_norm(state, "norm", x, eps).mean((1, 2)))


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
    return _linear(state, f"{key}.proj", mixed)


@pytest.mark.parametrize(("dim", "depth"), [([8], [2]), ([8, 12], [1, 2]), ([8, 8, 16], [1, 1, 1])])
def test_vip_equals_its_formula(dim, depth):
    model = randomise(archs.create("vip_nano", dim=dim, depth=depth, in_chans=3))
    state = _doubled(model)

    def reference(x: Tensor) -> Tensor:
        z, place = _patches(state, "stem.proj", x, 2), 0
        for i, layers in enumerate(depth):
            if i and dim[i] != dim[i - 1]:
                z = _convolve(state, f"stages.{place}.layer", z, stride=2, padding=0)
                place += 1
            for j in range(layers):
                block = f"stages.{place}.{j}"
                z = z + _permute(state, f"{block}.0.branch", _layer_norm(state, f"{block}.0.norm", z))
                z = z + _mlp(state, f"{block}.1.branch", _layer_norm(state, f"{block}.1.norm", z))
            place += 1
        return _logits(state, z)

    _assert_same(model, reference, _images(3, 3, 8, 8))


def _cycle(state: State, key: str, x: Tensor, axis: int, steps: int) -> Tensor:
    """y[o, h, w] = b[o] + sum_i W[o, i] x[i, h, w + d(i)] along the axis; d counts 0, 1, ..., then the negative."""
    distances = [*range(steps // 2 + 1), *range(-(steps // 2), 0)]
    read = torch.zeros_like(x)
    for channel in range(x.shape[3]):
        distance = distances[channel % steps]
        for place in range(x.shape[axis]):
            if 0 <= place + distance < x.shape[axis]:
                read.select(axis, place)[..., channel] = x.select(axis, place + distance)[..., channel]
    return _linear(state, key, read)


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("skeleton", ["overlap", "patch", "swin"])
def test_cyclemlp_equals_its_formula(skeleton, steps):
    given = {"img_size": (16, 24), "patch_size": 4, "num_classes": 5, "mlp_ratio": [2.0, 3.0]}
    model = archs.create("cyclemlp_b1", dim=[8, 12], depth=[1, 2], steps=steps, skeleton=skeleton, **given)
    state = _doubled(randomise(model))

    def reference(x: Tensor) -> Tensor:
        if skeleton == "overlap":
            z = _convolve(state, "stem.proj", x.permute(0, 2, 3, 1), stride=4, padding=2)
        elif skeleton == "patch":
            z = _patches(state, "stem.proj", x, 4)
        else:
            z = _layer_norm(state, "stem.1", _patches(state, "stem.0.proj", x, 4))
        assert z.shape[1:3] == (4, 6)
        for block in ("stages.0.0", None, "stages.2.0", "stages.2.1"):
            if block is None and skeleton != "swin":
                z = _convolve(state, "stages.1.layer", z, stride=2, padding=1)
            elif block is None:
                # As in Swin: top left, bottom left, top right, bottom right.
                four = [z[:, 0::2, 0::2], z[:, 1::2, 0::2], z[:, 0::2, 1::2], z[:, 1::2, 1::2]]
                z = _layer_norm(state, "stages.1.norm", torch.cat(four, -1)) @ state["stages.1.reduction.weight"].T
            else:
                key, normed = f"{block}.0.branch", _layer_norm(state, f"{block}.0.norm", z)
                branches = [
                    _cycle(state, f"{key}.sfc_h", normed, 2, steps),
                    _cycle(state, f"{key}.sfc_w", normed, 1, steps),
                    normed @ state[f"{key}.mlp_c.weight"].T,
                ]
                if skeleton == "swin":
                    mixed = sum(branches) + state[f"{key}.mlp_c.bias"]
                else:
                    mixed = _weigh(state, f"{key}.reweight", branches)
                z = z + _linear(state, f"{key}.proj", mixed)
                z = z + _mlp(state, f"{block}.1.branch", _layer_norm(state, f"{block}.1.norm", z))
        return _logits(state, z)

    _assert_same(model, reference, _images(3, 3, 16, 24))


def test_shift_has_the_gradient_of_its_formula():
    """The layer's own backward against autograd through the formula, and twice differentiable."""
    layer = randomise(cyclemlp.CycleFc(8, axis=1, steps=5)).double()
    x, direction = _images(2, 4, 3, 8).requires_grad_(), _images(2, 4, 3, 8)
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
    h, y = _gelu(_linear(state, f"{key}.0", x)), torch.zeros_like(x)
    (height, width), quarter = x.shape[1:3], x.shape[3] // 4
    for i in range(height):
        for j in range(width):
            for k, (row, column) in enumerate([(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]):
                place = h[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                y[:, i, j, k * quarter : (k + 1) * quarter] = place[:, k * quarter : (k + 1) * quarter]
    return _linear(state, f"{key}.3", y)


def _random(state: State, key: str, x: Tensor) -> Tensor:
    return torch.einsum("mn,bnc->bmc", state[f"{key}.weight"], x.flatten(1, 2)).reshape(x.shape)


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
    state, norm = _doubled(model), partial(_layer_norm, eps=1e-6)

    def reference(x: Tensor) -> Tensor:
        z = _patches(state, "stem.proj", x, 2)
        for i in range(3):
            block = f"stages.0.{i}"
            z = z + mixer(state, f"{block}.0.branch", norm(state, f"{block}.0.norm", z))
            z = z + _mlp(state, f"{block}.1.branch", norm(state, f"{block}.1.norm", z))
        return _logits(state, z, eps=1e-6)

    _assert_same(model, reference, _images(3, 3, 8, 12))


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


@pytest.mark.parametrize("img_size", [(8, 12), (6, 10)])
@pytest.mark.parametrize("pos_embed", [True, False])
def test_gfnet_equals_its_formula(pos_embed, img_size):
    given = {"img_size": img_size, "dim": 12, "in_chans": 3, "pos_embed": pos_embed}
    model = randomise(archs.create("gfnet_nano", **given))
    state, norm = _doubled(model), partial(_layer_norm, eps=1e-6)

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

    _assert_same(model, reference, _images(3, 3, *img_size))
