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
from archs.backbone import Backbone
from archs.bias import Bias
from archs.layers import Mlp, OverTokens, Patchify, Residual


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
    assert error < 1e-11 or error > 1e-3, f"{error} decides nothing"
    return error < 1e-11


def _shapes(name: str, img_size: int) -> list[torch.Size]:
    with torch.device("meta"):
        return [parameter.shape for parameter in archs.create(name, img_size=img_size).parameters()]


def measured(model: Backbone, in_chans: int, img_size: int, patch_size: int, grid_bound: bool) -> Bias:
    """The five claims, measured; a model without patches is asked about quarters of its image's side."""
    model = randomise(model).double().eval()
    # Where the grid is free, a larger one has tokens that no border reaches.
    img_size = img_size if grid_bound else 4 * img_size
    x = _images(img_size, in_chans)
    height, width = model.features(x).shape[1:3]
    if (height, width) == (1, 1):
        f, reach, margin = model, "global", 0
    else:
        f, margin = model.features, height // 2 - 1
        shares = receptive_field.measure(model, x, mass=1).values()
        reach = {1.0: "global", 1 / (height * width): "token"}.get(max(shares), "local")
    return Bias(
        stem=receptive_field.stem_reads(model.stem, x, patch_size),
        receptive_field=reach,
        permutation_equivariant=_holds(equivariance.permutation_error(f, x, patch_size)),
        shift_equivariant=_holds(equivariance.shift_error(f, x, patch_size, margin=margin)),
        grid_bound=grid_bound,
    )


def _measured(name: str) -> Bias:
    own = archs.arguments(name)
    size, in_chans = own["img_size"], own.get("in_chans", 3)
    patch_size = own.get("patch_size", size // 4)
    grid_bound = _shapes(name, size) != _shapes(name, size // 2)
    return measured(archs.create(name), in_chans, size, patch_size, grid_bound)


@pytest.mark.parametrize("name", _small())
def test_architecture_is_what_its_bias_claims(name):
    assert asdict(_measured(name)) == asdict(_declared(name))


def test_every_family_is_measured():
    assert {name.partition("_")[0] for name in _small()} == set(archs.families())


@pytest.mark.parametrize("family", archs.families())
def test_any_wrong_claim_is_found(family, monkeypatch):
    """Each claim set to each of its other values makes the test above fail."""
    module = importlib.import_module(f"archs.{family}")
    for claim, right in asdict(module.BIAS).items():
        for wrong in set(_values(claim)) - {right}:
            monkeypatch.setattr(module, "BIAS", replace(module.BIAS, **{claim: wrong}))
            with pytest.raises(AssertionError):
                test_architecture_is_what_its_bias_claims(f"{family}_nano")
            monkeypatch.undo()


@pytest.mark.parametrize("name", [f"{family}_nano" for family in archs.families()])
def test_weights_load_at_another_size_unless_bound(name):
    size = archs.arguments(name)["img_size"]
    weights = archs.create(name).state_dict()
    other = archs.create(name, img_size=size // 2)
    if _declared(name).grid_bound:
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

    bag = measured(model(Patchify(patch, dim, 1), channels()), 1, 8, patch, grid_bound=False)
    assert bag == Bias(
        stem="shared",
        receptive_field="token",
        permutation_equivariant=True,
        shift_equivariant=True,
        grid_bound=False,
    )
    tokens = measured(model(Patchify(patch, dim, 1), OverTokens(Mlp(16, 8))), 1, 8, patch, grid_bound=True)
    assert tokens == replace(
        bag, receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
    )
    assert measured(model(Patchify(patch, dim, 1), Run(convolve(3))), 1, 8, patch, False) == replace(
        bag, receptive_field="local", permutation_equivariant=False
    )
    overlapping = nn.Sequential(nn.Conv2d(1, dim, 4, stride=2, padding=1), Permute(0, 2, 3, 1))
    assert measured(model(overlapping, channels()), 1, 8, patch, grid_bound=False).stem == "dense"
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
    own = archs.arguments(name)
    model = archs.create(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 1, own["img_size"], own["img_size"])
    shares = receptive_field.measure(model, x)
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
