"""DeiT's attention on its way out and over merged tokens, against formulas in float64 written from the papers."""

import argparse
import math

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import archs
from analysis.probes.receptive_field import randomise
from archs.attention.diluted import Diluted
from archs.attention.merging import match, merge, num_merged
from engine.cost.profile import profile
from tests.formulas import gelu_of, layer_norm_of, linear_of

SIZES = {"dim": 24, "depth": 5, "num_heads": 3, "patch_size": 2, "img_size": 8, "num_classes": 5, "in_chans": 3}


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention_of(state, key, x, heads, size=None):
    """softmax(q k^T / sqrt(d) + log size) v, head by head, and the mean of the keys."""
    qkv = linear_of(state, f"{key}.qkv", x)
    width = x.shape[-1]
    d, out, keys = width // heads, [], 0
    for h in range(heads):
        q, k, v = (qkv[..., part * width + h * d : part * width + (h + 1) * d] for part in range(3))
        weights = torch.exp(q @ k.transpose(1, 2) / math.sqrt(d)) * (1 if size is None else size[:, None, :])
        out.append(weights / weights.sum(-1, keepdim=True) @ v)
        keys = keys + k / heads
    return linear_of(state, f"{key}.proj", torch.cat(out, -1)), keys


def merge_of(x, size, keys, r, class_token):
    """Image by image, token by token, from the paper's list of steps."""
    tokens, sizes = [], []
    for image in range(len(x)):
        even, odd = list(range(0, x.shape[1], 2)), list(range(1, x.shape[1], 2))
        edges = []
        for a in even[1:] if class_token else even:
            cosines = [torch.cosine_similarity(keys[image, a], keys[image, b], dim=0).item() for b in odd]
            edges.append((max(cosines), a, odd[cosines.index(max(cosines))]))
        chosen = {a: b for _, a, b in sorted(edges, reverse=True)[:r]}
        rows, counts = [], []
        for place in [a for a in even if a not in chosen] + odd:
            group = [place, *(a for a, b in chosen.items() if b == place)]
            weight = size[image, group]
            rows.append((weight[:, None] * x[image, group]).sum(0) / weight.sum())
            counts.append(weight.sum())
        tokens.append(torch.stack(rows))
        sizes.append(torch.stack(counts))
    return torch.stack(tokens), torch.stack(sizes)


# --- dilution


@pytest.mark.proves("the function, against an independent reference", "deit")
@pytest.mark.parametrize("lambda_", [1.0, 0.75, 0.25, 1 - 1 / 299, 0.0])
def test_a_diluted_layer_is_its_formula_at_every_share(lambda_):
    model = randomise(archs.create("deit_nano", **SIZES)).double().eval()
    state = {key: value.double() for key, value in model.state_dict().items()}
    (half,) = model.dilute([1])
    half.dilute(lambda_)
    x = images(2, 17, 24)
    y = (2 - lambda_) * x + lambda_ * attention_of(
        state, "stages.0.1.0.branch", layer_norm_of(state, "stages.0.1.0.norm", x, eps=1e-6), 3
    )[0]
    hidden = gelu_of(
        linear_of(state, "stages.0.1.1.branch.fc1", layer_norm_of(state, "stages.0.1.1.norm", y, eps=1e-6))
    )
    y = y + linear_of(state, "stages.0.1.1.branch.fc2", hidden)
    with torch.no_grad():
        assert (model.stages[0][1](x) - y).abs().max() < 1e-13
    assert model.state_dict().keys() == state.keys()


def test_a_share_of_one_is_the_ordinary_layer_to_the_bit():
    model = randomise(archs.create("deit_nano")).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        before = model(x)
        model.dilute([0, 1])
        assert torch.equal(model(x), before)


def test_the_share_keeps_the_dtype_of_the_stream():
    model = archs.create("deit_nano")
    model.dilute([0])[0].dilute(0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.stages[0][0](torch.randn(1, 17, 32)).dtype == torch.float32
    assert model.half().stages[0][0][0].join(torch.ones(1).half(), torch.ones(1).half()).dtype == torch.float16


def test_a_compiled_model_follows_the_share():
    """Without a new compilation for each value, which is a buffer; one more when the attention is gone."""
    model = archs.create("deit_nano").eval()
    (half,) = model.dilute([0])
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for lambda_ in (1.0, 0.7, 0.4, 0.1, 0.0):
            half.dilute(lambda_)
            assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert counter.frame_count == 2


def test_only_attention_can_be_diluted():
    model = archs.create("deit_nano", mlp_layers=[0])
    for layer in (0, 2, -1):
        with pytest.raises(ValueError, match=f"layer {layer} has no attention to dilute"):
            model.dilute([layer])


# --- merging


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("num_tokens", [5, 16, 17])
@pytest.mark.parametrize("r", [1, 3, 8, 99])
def test_merging_is_its_list_of_steps(class_token, num_tokens, r):
    r = num_merged(num_tokens, r, int(class_token))
    x, keys = images(3, num_tokens, 6), images(3, num_tokens, 4).flip(0)
    size = 1 + images(3, num_tokens).abs().round()
    tokens, sizes = merge(x, size, match(keys, r, class_token=class_token))
    expected, counts = merge_of(x, size, keys, r, class_token)
    assert tokens.shape == (3, num_tokens - r, 6)
    assert torch.allclose(tokens, expected, rtol=1e-12) and torch.equal(sizes, counts)
    if class_token:
        assert torch.equal(tokens[:, 0], x[:, 0]) and torch.equal(sizes[:, 0], size[:, 0])
    total = (sizes[..., None] * tokens).sum(1)
    assert torch.allclose(total, (size[..., None] * x).sum(1)), "the weighted sum of tokens is kept"


@pytest.mark.proves("the function, against an independent reference", "deit")
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("r", [3, 6])
@pytest.mark.parametrize("given", [{}, {"global_pool": "avg"}, {"merge_proportional": False}, {"mlp_layers": [0, 3]}])
def test_a_model_that_merges_is_its_formula(start, r, given):
    model = randomise(archs.create("deit_nano", **SIZES, merge_r=r, merge_start=start, **given)).double().eval()
    state = {key: value.double() for key, value in model.state_dict().items()}
    x = images(2, 3, 8, 8)
    removed, class_token = given.get("mlp_layers", []), "cls_token" in state
    with torch.no_grad():
        z, size, attending = model.embed(x), None, 0
        for i in range(5):
            block = f"stages.0.{i}"
            if i in removed:
                z = 2 * z
            else:
                counted = size if given.get("merge_proportional", True) else None
                mixed, keys = attention_of(
                    state, f"{block}.0.branch", layer_norm_of(state, f"{block}.0.norm", z, eps=1e-6), 3, counted
                )
                z = z + mixed
                if attending >= start:
                    size = torch.ones(z.shape[:2], dtype=z.dtype) if size is None else size
                    z, size = merge_of(z, size, keys, min(r, (z.shape[1] - class_token) // 2), class_token)
                attending += 1
            hidden = gelu_of(
                linear_of(state, f"{block}.1.branch.fc1", layer_norm_of(state, f"{block}.1.norm", z, eps=1e-6))
            )
            z = z + linear_of(state, f"{block}.1.branch.fc2", hidden)
        z = layer_norm_of(state, "norm", z, eps=1e-6)
        expected = linear_of(state, "head", z[:, 0] if class_token else z.mean(1))
        assert (model(x) - expected).abs().max() < 1e-11
        plain = archs.create("deit_nano", **SIZES, **{k: v for k, v in given.items() if k != "merge_proportional"})
        plain.double().eval().load_state_dict(model.state_dict(), strict=True)
        assert (plain(x) - expected).abs().max() > 1e-4, "merging changes nothing"


def test_merging_trains_and_compiles():
    model = archs.create("deit_nano", merge_r=4).train()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model.eval(), backend="eager")(x), model(x), atol=1e-6)


def test_attention_on_its_way_out_neither_merges_nor_is_counted():
    """So that what is trained merges as the form that is left."""
    given = {**SIZES, "merge_r": 2, "merge_start": 1}
    model = randomise(archs.create("deit_nano", **given)).double().eval()
    halves = model.dilute([0, 2])
    assert [block.merge_r for block in model.stages[0]] == [0, 0, 0, 2, 2]
    final = archs.create("deit_nano", **given, mlp_layers=[0, 2]).double().eval()
    final.load_state_dict({k: v for k, v in model.state_dict().items() if k in final.state_dict()}, strict=True)
    x = images(2, 3, 8, 8)
    for half in halves:
        half.dilute(0.0)
    with torch.no_grad():
        assert torch.equal(model(x), final(x))
        for half in halves:
            half.gone = False
        assert torch.equal(model(x), final(x))
    assert isinstance(halves[0], Diluted)


def test_a_model_that_merges_has_no_maps():
    model = archs.create("deit_nano", merge_r=2)
    for ask in (
        lambda: model.forward_intermediates(torch.randn(1, 1, 8, 8)),
        lambda: model.features(torch.randn(1, 1, 8, 8)),
    ):
        with pytest.raises(ValueError, match="a model that merges tokens has no maps of its blocks; leave out merge_r"):
            ask()
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="say how tokens are merged; give merge_r, too"):
        archs.create("deit_nano", merge_start=1)
    with pytest.raises(ValueError, match="merge_start 2: 2 layers keep their attention, from 0 on"):
        archs.create("deit_nano", merge_r=1, merge_start=2)


def test_merged_macs_are_counted():
    """Closed form, layer by layer: 12 C^2 per token, 2 N C for attention, and the products that look for the edges."""
    depth, c, heads, r = 4, 24, 3, 3
    shape = {"img_size": 8, "in_chans": 3, "num_classes": 5}
    given = {"dim": c, "depth": depth, "num_heads": heads, "merge_r": r, "merge_start": 1}
    n, macs = 17, 16 * 12 * c
    for i in range(depth):
        macs += n * 4 * c * c + 2 * n * n * c
        if i >= 1:
            macs += math.ceil(n / 2) * (n // 2) * c // heads
            n -= r
        macs += n * 8 * c * c
    assert profile("deit_nano", **shape, **given)["macs"] == macs + 5 * c


@pytest.mark.parametrize(
    ("variant", "r", "start", "giga"),
    [
        ("b16_mlp01346", 24, 1, 11.4339),
        ("b16_mlp01346", 28, 1, 10.8581),
        ("b16_mlp013469", 14, 0, 11.8983),
        ("s16_mlp024", 22, 1, 2.7063),
        ("s16_mlp0246", 19, 1, 2.9916),
    ],
)
def test_macs_of_the_published_merged_models(variant, r, start, giga):
    """As torch's FlopCounterMode counts the authors' own patched models, sihaoevery/lambda_vit at 4092b17."""
    shape = {"img_size": 224, "in_chans": 3, "num_classes": 1000}
    macs = profile(f"deit_{variant}", **shape, merge_r=r, merge_start=start)["macs"]
    assert round(macs / 1e9, 4) == giga


# --- published files


def published(removed=(), shrunk=True, **options):
    """A file of the removal's training: timm's names, wrapped, with the attention of removed layers unless shrunk."""
    from timm.models.vision_transformer import VisionTransformer

    model = randomise(VisionTransformer(img_size=8, patch_size=2, num_classes=5, embed_dim=24, depth=5, num_heads=3))
    drop = tuple(f"blocks.{i}.{part}." for i in removed for part in ("norm1", "attn"))
    state = {k: v for k, v in model.state_dict().items() if not (shrunk and k.startswith(drop))}
    return {"model": state, **options}


def trained(removed, epoch=399):
    options = argparse.Namespace(prune_layer=str(list(removed)), done_layer="[]", epochs=400)
    return published(removed, shrunk=False, args=options, epoch=epoch, optimizer={}, scaler={})


LISTS = {
    "b16_mlp01346": [0, 1, 3, 4, 6],
    "b16_mlp013469": [0, 1, 3, 4, 6, 9],
    "s16_mlp024": [0, 2, 4],
    "s16_mlp0246": [0, 2, 4, 6],
    "ti16_mlp024": [0, 2, 4],
    "ti16_mlp0246": [0, 2, 4, 6],
}


@pytest.mark.parametrize("variant", LISTS)
@pytest.mark.parametrize("shrunk", [True, False])
def test_the_layouts_of_the_six_published_files_load(variant, shrunk):
    """Each as our variant of that name, at a twelfth of its width; the layers are the published ones."""
    from timm.models.vision_transformer import VisionTransformer

    name, removed = f"deit_{variant}", LISTS[variant]
    own = archs.arguments(name)
    assert own["mlp_layers"] == removed and own["depth"] == 12
    width, heads = own["dim"] // 12, own["num_heads"]
    while width % heads:
        heads -= 1
    small = {"img_size": 32, "num_classes": 7, "dim": width, "num_heads": heads}
    model = VisionTransformer(img_size=32, patch_size=16, num_classes=7, embed_dim=width, depth=12, num_heads=heads)
    state = randomise(model).double().state_dict()
    gone = tuple(f"blocks.{i}.{part}." for i in removed for part in ("norm1", "attn"))
    file = {"model": {k: v for k, v in state.items() if not (shrunk and k.startswith(gone))}}
    found = archs.convert_checkpoint(name, file, **small)
    assert bool(found.notes) != shrunk
    loaded = archs.create(name, **{**small, **found.implied}).double().eval()
    loaded.load_state_dict(found.state_dict, strict=True)
    for i in removed:  # x + x: a residual attention that returns its input
        model.blocks[i].norm1 = model.blocks[i].attn = Same()
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.double().eval()(x)
        assert expected.std() > 1e-3 and torch.allclose(loaded(x), expected, rtol=1e-10, atol=1e-12)


class Same(torch.nn.Module):
    def forward(self, x: Tensor, **_: object) -> Tensor:
        return x


def test_inert_attention_is_left_out_with_a_word():
    (note,) = archs.convert_checkpoint("deit_nano", published([0, 2], shrunk=False), **SIZES, mlp_layers=[0, 2]).notes
    assert note.startswith("left out 12 tensors of the file (stages.0.0.0.branch.proj.bias, ")
    assert "attention of layers [0, 2], where the model has none" in note
    assert archs.convert_checkpoint("deit_nano", published([0, 2]), **SIZES).notes == ()


def test_the_options_beside_the_weights_say_which_attention_is_inert():
    """Without them an unshrunk file would compute something else in silence."""
    for file in (trained([0, 2]), published([0, 2], args={"prune_layer": [2], "done_layer": "[0]"}, epoch=299)):
        found = archs.convert_checkpoint("deit_nano", file, **SIZES)
        assert found.implied["mlp_layers"] == [0, 2]
        archs.create("deit_nano", **{**SIZES, **found.implied}).load_state_dict(found.state_dict, strict=True)
    with pytest.raises(ValueError, match=r"those of mlp_layers=\[0, 2\], not \[0\]"):
        archs.convert_checkpoint("deit_nano", trained([0, 2]), **SIZES, mlp_layers=[0])
    with pytest.raises(ValueError, match=r"epoch 280 of a dilution of layers \[0, 2\], .* at lambda 0\.064; take"):
        archs.convert_checkpoint("deit_nano", trained([0, 2], epoch=280), **SIZES)
    assert archs.convert_checkpoint("deit_nano", trained([], epoch=3), **SIZES).implied["mlp_layers"] == []


def test_what_is_missing_or_of_no_layer_is_reported():
    file = published([0, 2], shrunk=False)
    del file["model"]["blocks.1.attn.proj.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(stages\.0\.1\.0\.branch\.proj\.bias\)"):
        archs.convert_checkpoint("deit_nano", file, **SIZES, mlp_layers=[0, 2])
    file = published([0, 2])
    file["model"]["blocks.0.mlp.fc3.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 left over \(stages\.0\.0\.1\.branch\.fc3\.weight\)"):
        archs.convert_checkpoint("deit_nano", file, **SIZES)
