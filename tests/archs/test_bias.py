"""Each family is forced to be exactly what its BIAS claims, measured on random weights in float64."""

import importlib
from dataclasses import asdict, replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

import archs
from analysis.probes import equivariance, receptive_field
from analysis.probes.receptive_field import randomise
from archs import cyclemlp
from archs.parts.backbone import Backbone
from archs.parts.bias import Bias
from archs.parts.layers import Mlp, OverTokens, Patchify, Residual


def _family(name: str):
    return importlib.import_module(f"archs.{name.partition('_')[0]}")


def _small() -> list[str]:
    names = archs.list_archs()
    return [name for name in names if _family(name).EXPECTED[name.partition("_")[2]]["params"] < 300_000]


def _declared(name: str) -> Bias:
    family, variant = _family(name), name.partition("_")[2]
    return replace(family.BIAS, **getattr(family, "VARIANT_BIAS", {}).get(variant, {}))


def _images(size: int, in_chans: int) -> torch.Tensor:
    return torch.randn(2, in_chans, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _holds(error: float) -> bool:
    """A claim of equality either holds to rounding or fails clearly."""
    assert error < 1e-11 or error > 1e-5, f"{error} decides nothing"
    return error < 1e-11


def _is_grid_bound(model: Backbone, in_chans: int, img_size: int) -> bool:
    """A model built for one image size cannot even run on another: its weights belong to places."""
    with torch.no_grad():
        try:
            return not model(_images(img_size // 2, in_chans)).isfinite().all()
        except Exception:  # of einops, of torch or of the model itself
            return True


def _reach(model: Backbone, x: torch.Tensor) -> str:
    """How many tokens the middle one reads in the block where it reads most; a block keeps its grid."""
    inputs = {}
    hooks = [
        block.register_forward_pre_hook(lambda block, given: inputs.__setitem__(block, given[0].detach()))
        for block in model.blocks()
    ]
    with torch.no_grad():
        model.features(x)
    for hook in hooks:
        hook.remove()
    # A transition between two grids is not a block: it is what the next grid's tokens are made of.
    inputs = {block: given for block, given in inputs.items() if block(given).shape == given.shape}
    shares = {block: receptive_field.token_share(block, given) for block, given in inputs.items()}
    if all(
        share == 1 / given[0, ..., 0].numel() for share, given in zip(shares.values(), inputs.values(), strict=True)
    ):
        return "token"
    return "global" if max(shares.values()) == 1 else "local"


def measured(model: Backbone, in_chans: int, img_size: int, patch_size: int) -> Bias:
    """The five claims, measured; a model without patches is asked about quarters of its image's side.

    A pyramid is moved by as many pixels as one token of its last grid stands for.
    """
    model = randomise(model).double().eval()
    grid_bound = _is_grid_bound(model, in_chans, img_size)
    # Where the grid is free, a larger one has tokens that no border reaches.
    img_size = img_size if grid_bound else 4 * img_size
    x = _images(img_size, in_chans)
    height, width = model.features(x).shape[1:3]
    if (height, width) == (1, 1):
        f, reach, margin, stride = model, "global", 0, patch_size
    else:
        f, margin, stride = model.features, height // 2 - 1, img_size // height
        reach = _reach(model, x)
    return Bias(
        stem=receptive_field.stem_reads(model.stem, x, patch_size),
        receptive_field=reach,
        permutation_equivariant=_holds(equivariance.permutation_error(f, x, stride)),
        shift_equivariant=_holds(equivariance.shift_error(f, x, stride, margin=margin)),
        grid_bound=grid_bound,
    )


def _measured(name: str, **given: object) -> Bias:
    own = archs.arguments(name, **given)
    size, in_chans = own["img_size"], own.get("in_chans", 3)
    return measured(archs.create(name, **given), in_chans, size, own.get("patch_size", size // 4))


@pytest.mark.proves("BIAS, measured on random weights")
@pytest.mark.parametrize("name", _small())
def test_architecture_is_what_its_bias_claims(name):
    assert asdict(_measured(name)) == asdict(_declared(name))


@pytest.mark.proves("BIAS, measured on random weights")
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cyclemlp_t", {"img_size": 16, "patch_size": 2, "dim": [8, 12], "depth": [1, 1]}),
        ("cyclemlp_b", {"img_size": 16, "patch_size": 2, "dim": [8], "depth": [2], "steps": 5}),
        ("gfnet_ti", {"img_size": 16, "patch_size": 2, "dim": 8, "depth": 2}),
        ("vip_m7", {"img_size": 16, "patch_size": 2, "dim": [8, 8, 16, 16], "depth": [1, 1, 1, 1]}),
        ("deit_ti16_mlp024", {"img_size": 16, "patch_size": 2, "dim": 12, "depth": 6}),
    ],
)
def test_published_variant_made_small_is_what_its_bias_claims(name, given):
    """Variants that differ in kind from the small ones, with fewer and narrower layers."""
    assert asdict(_measured(name, **given)) == asdict(_declared(name))


def test_cyclemlp_is_global_because_of_its_weighting_alone():
    """Without the mean over the grid a block reads its cross of neighbours: 1 token, 2 in its row, 2 in its column."""
    x = torch.randn(1, 9, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for reweight, share in ((True, 1.0), (False, 5 / 81)):
        model = randomise(cyclemlp.block(12, (9, 9), reweight=reweight)).double()
        assert receptive_field.token_share(model, x) == pytest.approx(share)
    wide = randomise(cyclemlp.block(12, (9, 9), steps=7, reweight=False)).double()
    assert receptive_field.token_share(wide, x) == pytest.approx(13 / 81)


@pytest.mark.proves("BIAS, measured on random weights")
@pytest.mark.parametrize("family", archs.families())
def test_any_wrong_claim_is_found(family, monkeypatch):
    """Each claim set to each of its other values makes the test above fail."""
    module = importlib.import_module(f"archs.{family}")
    assert f"{family}_nano" in _small()
    for claim, right in asdict(module.BIAS).items():
        for wrong in set(_values(claim)) - {right}:
            monkeypatch.setattr(module, "BIAS", replace(module.BIAS, **{claim: wrong}))
            with pytest.raises(AssertionError):
                test_architecture_is_what_its_bias_claims(f"{family}_nano")
            monkeypatch.undo()


@pytest.mark.proves("weights load at another size unless grid_bound")
@pytest.mark.parametrize("name", [f"{family}_nano" for family in archs.families()])
def test_weights_load_at_another_size_unless_bound(name):
    size = archs.arguments(name)["img_size"]
    weights = archs.create(name).state_dict()
    other = archs.create(name, img_size=size // 2)
    # The Permutator's matrices have one shape on every grid, though their rows mean other places: it is bound all the
    # same, and says that its weights load.
    if _declared(name).grid_bound and not getattr(_family(name), "LOADS_ON_ANY_GRID", False):
        with pytest.raises(RuntimeError, match="size mismatch"):
            other.load_state_dict(weights)
    else:
        other.load_state_dict(weights)


def test_probes_see_the_opposite_of_each_claim():
    """Hand-built models on both sides of every claim, so that no probe can pass by always saying the same."""
    dim, patch = 6, 2

    def model(stem: nn.Module, *blocks: nn.Module) -> Backbone:
        return Backbone(stem, [nn.Sequential(*blocks)], nn.Identity(), nn.Linear(dim, 3))

    def channels() -> nn.Module:
        return Residual(nn.LayerNorm(dim), Mlp(dim, 8))

    def convolve(size: int) -> nn.Module:
        return nn.Sequential(Permute(0, 3, 1, 2), nn.Conv2d(dim, dim, size, padding="same"), Permute(0, 2, 3, 1))

    bag = measured(model(Patchify(patch, dim, 1), channels()), 1, 8, patch)
    assert bag == Bias(
        stem="shared",
        receptive_field="token",
        permutation_equivariant=True,
        shift_equivariant=True,
        grid_bound=False,
    )
    tokens = measured(model(Patchify(patch, dim, 1), OverTokens(Mlp(16, 8))), 1, 8, patch)
    assert tokens == replace(
        bag, receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
    )
    assert measured(model(Patchify(patch, dim, 1), Run(convolve(3))), 1, 8, patch) == replace(
        bag, receptive_field="local", permutation_equivariant=False
    )
    overlapping = nn.Sequential(nn.Conv2d(1, dim, 4, stride=2, padding=1), Permute(0, 2, 3, 1))
    assert measured(model(overlapping, channels()), 1, 8, patch).stem == "dense"
    pooled = model(Patchify(patch, dim, 1), channels())
    assert _holds(equivariance.permutation_error(randomise(pooled).double(), _images(8, 1), patch))


def test_share_of_mass_is_between_token_and_global():
    x = _images(4, 4)
    mix = OverTokens(nn.Linear(16, 16, bias=False).double())
    with torch.no_grad():
        mix.mix.weight.copy_(torch.eye(16) + 0.01 * torch.ones(16, 16))
    x_BHWC = x.permute(0, 2, 3, 1)
    assert receptive_field.token_share(mix, x_BHWC, mass=0.9) == 1 / 16
    assert receptive_field.token_share(mix, x_BHWC, mass=1.0) == 1.0
    assert receptive_field.token_share(nn.Identity(), x_BHWC) == 1 / 16


@pytest.mark.parametrize("name", [f"{family}_nano" for family in archs.families()])
def test_measure_leaves_the_checkpoint_alone(name):
    """Where every block keeps its grid, which is what `token_shares` asks for: a pyramid is asked about one stage."""
    own = archs.arguments(name)
    given = {key: own[key][:1] for key in ("dim", "depth") if isinstance(own.get(key), list)}
    model = archs.create(name, **given).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 1, own["img_size"], own["img_size"])
    shares = receptive_field.token_shares(model, x)
    errors = equivariance.measure(model, x, own.get("patch_size", 2))
    assert len(shares) == len(model.blocks()) and all(0 < share <= 1 for share in shares.values())
    assert set(errors) == set(equivariance.UNITS)
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def _values(claim: str) -> tuple:
    hint = get_type_hints(Bias)[claim]
    return (True, False) if hint is bool else get_args(hint)


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.order)


class Run(nn.Module):
    """One block, whatever it is made of."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)
