"""Each family computes what an independent implementation computes from the same weights, all of them random.

The references are timm's classes where timm has the family, and otherwise the formulas of the paper written out here.
"""

import re
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
from tests.formulas import State, assert_same, batch_norm_of, doubled, gelu_of, layer_norm_of, linear_of, random_images

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


@pytest.mark.proves("the function, against an independent reference")
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
    assert_same(model, _load(reference, model.state_dict(), renames), random_images(3, 3, 8, 8))


@pytest.mark.proves("the function, against an independent reference", "convmixer")
@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_convmixer_equals_timm(act):
    model = randomise(archs.create("convmixer_nano", dim=24, depth=2, num_classes=5, in_chans=3, act=act))
    layer = {"gelu": nn.GELU, "relu": nn.ReLU}[act]
    reference = ConvMixer(24, 2, kernel_size=3, patch_size=2, num_classes=5, act_layer=layer)
    reference = _load(reference, model.state_dict(), CONVMIXER)
    assert_same(model, reference, random_images(3, 3, 8, 8))
    # With the statistics of the batch, and these then remembered, too.
    x = random_images(3, 3, 8, 8)
    assert torch.allclose(model.double().train()(x), reference.train()(x), rtol=1e-11)
    ours = _load(ConvMixer(24, 2, kernel_size=3, patch_size=2, num_classes=5), model.state_dict(), CONVMIXER)
    assert all(torch.allclose(value, ours.state_dict()[key]) for key, value in reference.state_dict().items())


@pytest.mark.proves("the function, against an independent reference", "deit")
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_deit_equals_timm(pool):
    model = randomise(archs.create("deit_nano", dim=24, num_classes=5, in_chans=3, global_pool=pool))
    reference = VisionTransformer(
        **SIZES, embed_dim=24, depth=2, num_heads=4, global_pool=pool, class_token=pool == "token", fc_norm=False
    )
    reference = _load(reference, model.state_dict(), DEIT)
    x = random_images(3, 3, 8, 8)
    assert_same(model, reference, x)
    tokens = reference.forward_features(x)[:, -16:]
    assert torch.allclose(model.double().features(x), tokens.unflatten(1, (4, 4)), rtol=1e-11)


# --- against the formulas


def _trunk(state: State, z: Tensor, depth: int) -> Tensor:
    """Inverted bottlenecks, then the head without a norm."""
    for i in range(depth):
        block = f"stages.0.{i}"
        hidden = gelu_of(linear_of(state, f"{block}.branch.fc1", layer_norm_of(state, f"{block}.norm", z)))
        z = z + linear_of(state, f"{block}.branch.fc2", hidden)
    return linear_of(state, "head", z)


@pytest.mark.proves("the function, against an independent reference", "bmlp")
def test_bmlp_equals_its_formula():
    model = randomise(archs.create("bmlp_nano", dim=16, depth=3, in_chans=3, expansion=3))
    state = doubled(model)
    assert_same(
        model, lambda x: _trunk(state, linear_of(state, "stem.proj", x.flatten(1)), 3), random_images(3, 3, 8, 8)
    )


@pytest.mark.proves("the function, against an independent reference", "patchmlp")
@pytest.mark.parametrize("shared", [True, False])
def test_patchmlp_equals_its_formula(shared):
    model = randomise(archs.create("patchmlp_nano", img_size=(8, 12), dim=48, in_chans=3, shared=shared))
    state = doubled(model)

    def reference(x: Tensor) -> Tensor:
        embedded = []
        for row in range(4):
            for column in range(6):
                patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
                if shared:
                    embedded.append(linear_of(state, "stem.0.proj", patch))
                else:
                    weight, bias = state["stem.0.weight"][row, column], state["stem.0.bias"][row, column]
                    embedded.append(patch @ weight.T + bias)
        return _trunk(state, torch.cat(embedded, 1), 2)

    assert_same(model, reference, random_images(3, 3, 8, 12))


@pytest.mark.proves("the function, against an independent reference", "mlp")
def test_standard_mlp_equals_its_formula():
    model = randomise(archs.create("mlp_nano", dim=16, depth=4, in_chans=3))
    state = doubled(model)

    def reference(x: Tensor) -> Tensor:
        z = linear_of(state, "stem.0.proj", x.flatten(1))
        for i in range(3):
            z = linear_of(state, f"stages.0.{i}.2", gelu_of(layer_norm_of(state, f"stages.0.{i}.0", z)))
        return linear_of(state, "head", z)

    assert_same(model, reference, random_images(3, 3, 8, 8))


@pytest.mark.proves("the function, against an independent reference", "mlp")
def test_two_and_three_layer_mlps_equal_their_formula():
    for name, depth in (("mlp_two", 1), ("mlp_three", 2)):
        model = randomise(archs.create(name))
        state = doubled(model)

        def reference(x: Tensor, state: State = state, depth: int = depth) -> Tensor:
            h = linear_of(state, "stem.0.proj", x.flatten(1)).relu()
            for i in range(depth - 1):
                h = linear_of(state, f"stages.0.{i}.0", h).relu()
            return linear_of(state, "head", h)

        assert_same(model, reference, random_images(3, 1, 28, 28))


def _six(state: State, x: Tensor, training: bool = False) -> Tensor:
    """y = W6 h5 with one BatchNorm per width: 512 for layers 1 and 2, 256 for 3 and 4, 128 for 5."""
    norm = partial(batch_norm_of, state, training=training)
    norm512, norm256, norm128 = "stem.2.layer", "stages.0.1.2.layer", "stages.0.3.2.layer"
    h1 = norm(norm512, linear_of(state, "stem.0.proj", x.flatten(1)).relu())
    h2 = norm(norm512, linear_of(state, "stages.0.0.branch.0", h1).relu()) + h1
    h3 = norm(norm256, linear_of(state, "stages.0.1.0", h2).relu())
    h4 = norm(norm256, linear_of(state, "stages.0.2.branch.0", h3).relu()) + h3
    h5 = norm(norm128, linear_of(state, "stages.0.3.0", h4).relu())
    return linear_of(state, "head", h5)


SMALL_SIX = {"img_size": 4, "dim": [20, 20, 12, 12, 8]}


@pytest.mark.proves("the function, against an independent reference", "mlp")
def test_six_layer_mlp_equals_its_formula():
    model = randomise(archs.create("mlp_six", **SMALL_SIX))
    state = doubled(model)
    assert_same(model, lambda x: _six(state, x), random_images(3, 3, 4, 4))


def test_shared_batchnorm_learns_from_every_layer_of_its_width():
    model = randomise(archs.create("mlp_six", **SMALL_SIX)).double().train()
    state = doubled(model)
    x = random_images(6, 3, 4, 4)
    assert torch.allclose(model(x), _six(state, x, training=True), rtol=1e-11)
    after = model.state_dict()
    for key in ("stem.2.layer", "stages.0.1.2.layer", "stages.0.3.2.layer"):
        assert torch.allclose(after[f"{key}.running_mean"], state[f"{key}.running_mean"], rtol=1e-11)
        assert torch.allclose(after[f"{key}.running_var"], state[f"{key}.running_var"], rtol=1e-11)


@pytest.mark.proves("the function, against an independent reference", "mlp")
def test_twelve_layer_mlp_equals_its_formula():
    widths = [24, 24, 16, 16, 16, 16, 12, 12, 8, 8, 8]
    model = randomise(archs.create("mlp_twelve", img_size=4, dim=widths))
    state = doubled(model)
    norms = {24: "stem.2.layer", 16: "stages.0.1.2.layer", 12: "stages.0.5.2.layer", 8: "stages.0.7.2.layer"}

    def reference(x: Tensor) -> Tensor:
        h = batch_norm_of(state, norms[24], linear_of(state, "stem.0.proj", x.flatten(1)).relu())
        for i, width in enumerate(widths[1:]):
            h = batch_norm_of(state, norms[width], linear_of(state, f"stages.0.{i}.0", h).relu())
        return linear_of(state, "head", h)

    assert_same(model, reference, random_images(3, 3, 4, 4))


@pytest.mark.proves("the function, against an independent reference", "deit")
@pytest.mark.parametrize("removed", [(0,), (1, 2), (0, 1, 2)])
def test_deit_with_removed_attention_equals_its_formula(removed):
    model = randomise(archs.create("deit_nano", dim=12, depth=3, num_heads=3, mlp_layers=removed))
    state = doubled(model)
    norm = partial(layer_norm_of, state, eps=1e-6)

    def attention(key: str, x: Tensor) -> Tensor:
        heads = []
        for head in linear_of(state, f"{key}.qkv", x).reshape(*x.shape[:2], 3, 3, 4).unbind(3):
            q, k, v = head.unbind(2)
            weights = torch.exp(q @ k.transpose(1, 2) / 4**0.5)
            heads.append(weights / weights.sum(-1, keepdim=True) @ v)
        return linear_of(state, f"{key}.proj", torch.cat(heads, -1))

    def reference(x: Tensor) -> Tensor:
        patches = [x[:, :, r : r + 2, c : c + 2].flatten(1) for r in range(0, 8, 2) for c in range(0, 8, 2)]
        patches = linear_of(state, "stem.proj", torch.stack(patches, 1))
        z = torch.cat([state["cls_token"].expand(len(x), 1, -1), patches], 1) + state["pos_embed"]
        for i in range(3):
            block = f"stages.0.{i}"
            z = 2 * z if i in removed else z + attention(f"{block}.0.branch", norm(f"{block}.0.norm", z))
            hidden = gelu_of(linear_of(state, f"{block}.1.branch.fc1", norm(f"{block}.1.norm", z)))
            z = z + linear_of(state, f"{block}.1.branch.fc2", hidden)
        return linear_of(state, "head", norm("norm", z)[:, 0])

    assert_same(model, reference, random_images(3, 1, 8, 8))
    assert not any(re.match(rf"stages\.0\.({'|'.join(map(str, removed))})\.0\.", key) for key in state)
