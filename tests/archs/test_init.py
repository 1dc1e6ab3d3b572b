"""How every family's weights start: as its authors' do."""

import pytest
import torch
from torch import nn

import archs
from archs.ingredients.lift import Geometry, project


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}


def _is_uniform_default(layer: nn.Module) -> bool:
    """PyTorch's default: weight and bias uniform within 1 / sqrt(fan in)."""
    bound = layer.weight[0].numel() ** -0.5
    near = layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    return near and layer.weight.abs().max() <= bound and 0 < layer.bias.abs().max() <= bound


@pytest.mark.proves("init, as the authors' code does it")
@pytest.mark.parametrize("family", ["mlp", "bmlp", "patchmlp", "convmixer"])
def test_pytorch_defaults_are_kept(family):
    torch.manual_seed(0)
    for module in archs.create(f"{family}_1m").modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert _is_uniform_default(module)


@pytest.mark.proves("init, as the authors' code does it", "patchmlp")
def test_unshared_stem_starts_like_separate_linears():
    torch.manual_seed(0)
    weight = archs.create("patchmlp_1m_unshared").stem[0].weight
    assert weight.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.05) and weight.abs().max() <= 48**-0.5


@pytest.mark.proves("init, as the authors' code does it", "mixer")
def test_mixer_starts_with_lecun_normal_kernels_and_zero_head():
    torch.manual_seed(0)
    model = archs.create("mixer_1m")
    for key, layer in _linears(model).items():
        assert not layer.bias.any()
        if key == "head":
            assert not layer.weight.any()
        else:
            assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
            assert layer.weight.abs().max() < 2.3 * layer.in_features**-0.5, "truncated at two deviations"


@pytest.mark.parametrize(("variant", "start"), [("s12", 0.1), ("s24", 1e-5), ("s36", 1e-6), ("b24_8", 1e-6)])
def test_resmlp_layer_scale_starts_as_published(variant, start):
    assert archs.variants("resmlp")[variant]["init_values"] == start


@pytest.mark.proves("init, as the authors' code does it", "resmlp")
def test_resmlp_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = archs.create("resmlp_1m", init_values=0.25)
    linears = _linears(model)
    assert _is_uniform_default(linears.pop("stem.proj"))
    for key, layer in linears.items():
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05), key
    for key, parameter in model.named_parameters():
        constant = {"alpha": 1.0, "beta": 0.0, "gamma": 0.25}.get(key.rpartition(".")[2])
        assert constant is None or (parameter == constant).all()


@pytest.mark.proves("init, as the authors' code does it", "gmlp")
def test_gmlp_gates_start_open():
    torch.manual_seed(0)
    model = archs.create("gmlp_1m")
    for key, layer in _linears(model).items():
        if key == "head":
            assert not layer.weight.any() and not layer.bias.any()
        elif key.endswith("spatial.mix"):
            assert layer.weight.std().item() == pytest.approx(1e-6, rel=0.05) and (layer.bias == 1).all()
        elif key == "stem.proj":
            assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        else:
            xavier = (2 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(xavier, rel=0.05)
            assert 0 < layer.bias.std() < 2e-6
    eps = {key: module.eps for key, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert all(value == (1e-5 if key.endswith("branch.2.norm") else 1e-6) for key, value in eps.items())
    assert sorted(set(eps.values())) == [1e-6, 1e-5]


@pytest.mark.proves("init, as the authors' code does it", "deit")
def test_deit_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = archs.create("deit_1m")
    linears = _linears(model)
    assert _is_uniform_default(linears.pop("stem.proj"))
    for layer in linears.values():
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.proves("init, as the authors' code does it")
@pytest.mark.parametrize("family", ["vip", "cyclemlp"])
def test_permutator_and_cyclemlp_start_as_their_authors_do(family):
    """The same rule in both codes: normal linears, zero biases, convolutions as they come."""
    torch.manual_seed(0)
    given = {"dim": [64, 128], "depth": [2, 2]}
    model = archs.create(f"{family}_1m", num_classes=100, **given)
    assert _is_uniform_default(model.stem.proj)
    (transition,) = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert _is_uniform_default(transition)
    linears = _linears(model)
    del linears["stem.proj"]
    # Two blocks of nine linears in each of two stages, and the head.
    assert len(linears) == 4 * 8 + 1
    for key, layer in linears.items():
        assert layer.bias is None or not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05), key


@pytest.mark.proves("init, as the authors' code does it")
@pytest.mark.parametrize("family", ["identityformer", "randformer", "poolformer", "s2mlp"])
def test_metaformers_start_normal_everywhere(family):
    torch.manual_seed(0)
    # The head of ten classes is too small a sample for so narrow a margin.
    for key, layer in _linears(archs.create(f"{family}_1m", num_classes=100)).items():
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any(), key


def test_randformer_mixes_with_fixed_averages():
    model = archs.create("randformer_nano")
    matrices = [value for key, value in model.named_buffers() if key.endswith("weight")]
    assert len(matrices) == 3 and not torch.equal(matrices[0], matrices[1])
    for matrix in matrices:
        assert torch.allclose(matrix.sum(-1), torch.ones(16)) and not matrix.requires_grad
        # Softmax of numbers in [0, 1): no entry is e times another of its row.
        assert (matrix.amax(-1) / matrix.amin(-1)).max() < 2.7183
    assert not any(key.endswith("branch.weight") for key, _ in model.named_parameters())
    assert sum(key.endswith("branch.weight") for key in model.state_dict()) == 3


@pytest.mark.proves("init, as the authors' code does it", "gfnet")
def test_gfnet_starts_as_the_authors_do():
    torch.manual_seed(0)
    model = archs.create("gfnet_1m", num_classes=100, pos_embed=True)
    assert _is_uniform_default(model.stem[0].proj)
    linears = _linears(model)
    del linears["stem.0.proj"]
    for key, layer in linears.items():
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any(), key
    spectra = [value for key, value in model.named_parameters() if key.endswith("complex_weight")]
    assert len(spectra) == 6
    for value in [*spectra, model.stem[1].pos_embed]:
        assert value.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.no_weight_decay() == {"stem.1.pos_embed"}


# --- a flat first layer that starts as a convolution


@pytest.mark.parametrize(("stride", "kernel_size", "dim"), [(2, 2, 32), (2, 4, [32, 24]), (4, 4, 24), (4, 6, 24)])
def test_a_flat_first_layer_starts_as_a_convolution(stride, kernel_size, dim):
    """Its outputs are those of torch's convolution with these weights, and it has as many free weights as before."""
    given = {"img_size": 8, "in_chans": 3, "dim": dim, "depth": 2}
    model = archs.create("mlp_nano", start="kernel", stride=stride, kernel_size=kernel_size, **given).double()
    layer, x = model.stem[0].proj, torch.randn(4, 3, 8, 8, dtype=torch.float64)
    geometry = Geometry(grid=(8, 8), stride=stride, in_chans=3)
    kernels = project(layer.weight.data, geometry, kernel_size)
    places = (8 // stride) ** 2
    convolution = torch.nn.functional.conv2d(
        x, kernels, layer.bias[::places], stride=stride, padding=geometry.padding(kernel_size)
    )
    torch.testing.assert_close(layer(x.flatten(1)), convolution.flatten(1))
    bound = (3 * kernel_size**2) ** -0.5
    assert 0.9 * bound < kernels.abs().max() <= bound and layer.bias.abs().max() <= bound
    free = archs.create("mlp_nano", **given)
    assert [p.shape for p in model.parameters()] == [p.shape for p in free.parameters()]
    assert all(p.requires_grad for p in model.parameters())


def test_an_impulse_reads_one_place_and_all_colours():
    torch.manual_seed(0)
    model = archs.create("mlp_nano", start="impulse", stride=2, kernel_size=4, in_chans=3, dim=160)
    kernels = project(model.stem[0].proj.weight.data, Geometry(grid=(8, 8), stride=2, in_chans=3), 4)
    read = (kernels != 0).flatten(2)
    assert read.sum(2).tolist() == [[1] * 3] * 10 and (read == read[:, :1]).all()
    assert len(set(read[:, 0].int().argmax(1).tolist())) > 3


def test_other_starts_leave_the_rest_alone_and_mistakes_are_one_line():
    states = []
    for start in ({}, {"start": "kernel", "stride": 2}):
        torch.manual_seed(3)
        states.append(archs.create("mlp_nano", **start).state_dict())
    assert all(torch.equal(value, states[1][key]) == (not key.startswith("stem")) for key, value in states[0].items())
    for given, line in (
        ({"start": "kernel"}, "112 units do not stand on 8 x 8 places; nearest: 64"),
        ({"start": "kernal"}, "start 'kernal' is unknown; known: default, kernel, impulse"),
        ({"stride": 2}, "kernel_size and stride are of start kernel or impulse"),
        ({"start": "impulse", "stride": 3}, "stride 3 does not divide the grid of 8 x 8 places"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=line):
            archs.create("mlp_nano", **given)
    assert archs.symmetry("mlp_nano", start="kernel", stride=2) == () != archs.symmetry("mlp_nano")
