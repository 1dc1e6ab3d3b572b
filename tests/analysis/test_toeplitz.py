"""How convolutional a matrix is: matrices whose answer is known, exact means over relabelings, every mixer of ours."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis.bias.probe import Rearranged, Subject
from analysis.measures import mixing
from analysis.measures.mixing import Mixing, matrices
from analysis.probes import toeplitz
from analysis.probes.receptive_field import randomise
from analysis.probes.toeplitz import Places, estimates, indices, projected, relabeled
from engine.data.normalize import places as permuted
from engine.run import make_run


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolution(grid, kernel):
    """(1, N, N) of a function of the displacement, entry by entry."""
    at = list(itertools.product(range(grid[0]), range(grid[1])))
    return torch.tensor([[[kernel(c - a, d - b) for c, d in at] for a, b in at]], dtype=torch.float64)


def gaussian(sigma):
    return lambda row, column: np.exp(-(row**2 + column**2) / (2 * sigma**2))


def found(V_KNN, grid):
    return estimates(Mixing(V_KNN, grid))


def test_independent_entries_are_no_convolution():
    one = found(normal(1, 64, 64), (8, 8))
    assert one["geometry"].value == pytest.approx(0, abs=0.02) and abs(one["z"].value) < 3
    assert one["toeplitz"].value == pytest.approx(15**2 / 8**4, abs=0.02), (
        "its classes over its entries: (2g - 1)^2 / g^4"
    )
    assert one["commutator"].value == pytest.approx(0.5**0.5, abs=0.02)
    assert one["local"].value == pytest.approx(one["local"].null, abs=0.02)


def test_what_no_relabeling_changes_fools_the_naive_index_only():
    ones, eye = torch.ones(1, 64, 64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)[None]
    for matrix in (ones, eye, 3 * eye + ones, -eye + 0.1 * ones):
        one = found(matrix, (8, 8))
        assert one["toeplitz"].value == pytest.approx(1), "a false positive"
        assert one["toeplitz"].null == pytest.approx(1) and one["geometry"].value == 0
        assert np.isnan(one["z"].value)


def test_a_convolution_is_one_and_with_noise_of_equal_energy_less():
    V = convolution((8, 8), gaussian(1.2))
    clean = found(V, (8, 8))
    assert clean["geometry"].value == pytest.approx(1) and clean["toeplitz"].value == pytest.approx(1)
    assert clean["commutator"].value == pytest.approx(0, abs=1e-12) and clean["z"].value > 60
    noise = normal(1, 64, 64)
    noisy = found(V + noise * V.norm() / noise.norm(), (8, 8))
    # T and its null are means of the two parts', each with half of the energy.
    T, null = (1 + 225 / 4096) / 2, (clean["toeplitz"].null + 225 / 4096) / 2
    assert noisy["toeplitz"].value == pytest.approx(T, abs=0.02)
    assert noisy["geometry"].value == pytest.approx((T - null) / (1 - null), abs=0.03)
    assert clean["z"].value / 3 < noisy["z"].value < clean["z"].value and noisy["geometry"].low > 0.25
    assert found(V[:, torch.randperm(64)], (8, 8))["geometry"].high < 0.2, "tokens in another order"


def test_the_nearest_small_convolution():
    inside = convolution((6, 5), lambda row, column: (1 + row + 2 * column) * (max(abs(row), abs(column)) <= 1))
    one = found(inside, (6, 5))
    assert one["local"].value == pytest.approx(1) and one["distance"].value == pytest.approx(0, abs=1e-6)
    wide = convolution((6, 5), lambda row, column: float(max(abs(row), abs(column)) == 2))
    one = found(inside + wide, (6, 5))
    share = inside.square().sum() / (inside + wide).square().sum()
    assert one["local"].value == pytest.approx(float(share))
    assert one["distance"].value == pytest.approx(float((1 - share) ** 0.5))
    assert one["geometry"].value == pytest.approx(1), "it is a convolution, but no small one"


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 6)])
def test_the_mean_over_relabelings_is_that_of_all_of_them(grid):
    V, places = normal(2, 6, 6) + 0.3, Places.of(grid)
    orders = [list(order) for order in itertools.permutations(range(6))]
    all_of_them = torch.stack([projected(V[:, order][:, :, order], places) for order in orders])
    assert torch.allclose(relabeled(V, places), all_of_them.mean(0))
    local = [(V[:, order][:, :, order] * places.near).square().sum() for order in orders]
    assert indices(V, places)["local_null"] == pytest.approx(float(sum(local) / len(local) / V.square().sum()))
    part = places.but(2)  # an irregular set of tokens
    V, orders = V[:, :5, :5], [list(order) for order in itertools.permutations(range(5))]
    all_of_them = torch.stack([projected(V[:, order][:, :, order], part) for order in orders])
    assert torch.allclose(relabeled(V, part), all_of_them.mean(0))


def test_the_projection_is_the_mean_over_each_displacement():
    V, grid = normal(1, 12, 12), (3, 4)
    at, classes = list(itertools.product(range(3), range(4))), {}
    for (i, a), (j, b) in itertools.product(enumerate(at), repeat=2):
        classes.setdefault((b[0] - a[0], b[1] - a[1]), []).append(float(V[0, i, j]))
    expected = sum(len(values) * np.mean(values) ** 2 for values in classes.values())
    assert float(projected(V, Places.of(grid))) == pytest.approx(expected)
    assert len(classes) == 5 * 7


def test_the_interval_is_as_wide_as_the_draws_scatter():
    V = convolution((6, 6), gaussian(1.0))
    drawn = [found(V + 0.25 * normal(1, 36, 36, seed=seed), (6, 6))["geometry"] for seed in range(12)]
    scatter = np.std([each.value for each in drawn], ddof=1)
    half = np.mean([(each.high - each.low) / 2 for each in drawn])
    assert 1.96 * scatter < half < 6 * scatter, "a jackknife over tokens is careful"


MIXERS = {
    "resmlp_nano": 1, "mixer_nano": 1, "gmlp_nano": 1, "randformer_nano": 1, "gfnet_nano": 36, "convmixer_nano": 0,
    "poolformer_nano": 1, "s2mlp_nano": 32, "deit_nano": 4, "vip_nano": 64, "cyclemlp_nano_isotropic": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", MIXERS)
def test_every_family_is_read(name):
    torch.manual_seed(0)
    model = randomise(archs.create(name)).eval()
    mixings = matrices(model, torch.randn(4, 1, 8, 8))
    assert len(mixings) >= len(model.blocks()), "a mixer in each block"
    for V_KNN, grid in mixings.values():
        assert V_KNN.shape[1:] == (grid[0] * grid[1],) * 2 and V_KNN.dtype == torch.float64
        assert not MIXERS[name] or len(V_KNN) == MIXERS[name]
        if name in ("gfnet_nano", "convmixer_nano", "cyclemlp_nano_isotropic"):
            assert found(V_KNN, grid)["geometry"].value == pytest.approx(1, abs=1e-4), "made a convolution"
        if name == "deit_nano":
            assert (V_KNN >= 0).all() and V_KNN.sum(2).max() < 1 + 1e-6


def test_what_is_read_is_what_is_applied():
    """ResMLP, gMLP's gate and a depthwise convolution, by an independent product; token MLPs by autograd."""
    torch.manual_seed(1)
    x = torch.randn(3, 1, 8, 8)
    model = randomise(archs.create("resmlp_nano")).eval()
    weight = model.stages[0][1][0].branch.mix.weight.double()
    assert torch.allclose(matrices(model, x)["stages.0.1.0.branch"].matrices[0], weight, atol=1e-5)
    model = randomise(archs.create("mixer_nano")).double().eval()
    module, inputs = model.stages[0][0][0].branch, []
    module.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    (V,) = matrices(model, x.double())["stages.0.0.0.branch"].matrices
    # Channels do not meet, so that the gradient of one token's sum has the Jacobian of each image and channel.
    given = inputs[0].requires_grad_()
    y = module(given).flatten(1, 2).sum((0, 2))
    rows = [torch.autograd.grad(each, given, retain_graph=True)[0].flatten(1, 2).mean((0, 2)) for each in y]
    assert torch.allclose(V, torch.stack(rows))


@pytest.mark.parametrize("name", ["deit_nano", "deit_nano_set", "lattice_nano"])
def test_the_attention_matrix_is_what_turns_values_into_outputs(name):
    """With values that are one at one token, and an output map that changes nothing, attention puts out its matrix."""
    torch.manual_seed(0)
    given = {"mixer": "attention"} if name == "lattice_nano" else {}
    model = randomise(archs.create(name, **given)).double().eval()
    x, module, inputs = torch.randn(3, 1, 8, 8).double(), model.stages[0][0][0].branch, []
    module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    (V_KNN, _) = matrices(model, x)["stages.0.0.0.branch"]
    (given,), dim = inputs, 32
    first = given.shape[1] - 16 if given.ndim == 3 else 0
    marks = torch.eye(16, dtype=torch.float64)
    with torch.no_grad():
        module.proj.weight.copy_(torch.eye(dim))
        if module.proj.bias is not None:
            module.proj.bias.zero_()
        for token in (0, 7, 15):
            # The value map is replaced by a constant at one token: what comes out is that token's column.
            hook = (module.v if name == "lattice_nano" else module.qkv).register_forward_hook(
                lambda layer, args, out, token=token: _marked(out, marks[token], first, dim)
            )
            out = module(given).flatten(1, -2)
            hook.remove()
            heads = out[:, first:].unflatten(2, (4, -1)).mean(0)[..., 0].T
            assert torch.allclose(heads, V_KNN[:, :, token]), name


def _marked(out, mark_N, first, dim):
    """The last `dim` channels as a mark over the tokens."""
    mark = torch.cat([mark_N.new_zeros(first), mark_N])
    return torch.cat([out[..., :-dim], mark[:, None].expand(*out.shape[:-1], dim)], -1)


@pytest.mark.parametrize("mixer", sorted({"dense", "dense_c", "banded", "toeplitz", "toeplitz_c", "kernel", "depthwise",
    "axial", "monarch", "two", "token_mlp", "gate", "shift", "average", "pooling", "circulant_c", "toeplitz_projected",
    "distance", "attention", "attention_window", "set_attention", "none", "banded_c"}))  # fmt: skip
def test_every_mixer_of_the_lattice_is_read_also_scrambled(mixer):
    torch.manual_seed(0)
    try:
        model = archs.create("lattice_nano", mixer=mixer, scrambled=True).eval()
    except ValueError:  # its tokens have no order
        model = archs.create("lattice_nano", mixer=mixer).eval()
    x = torch.randn(4, 1, 8, 8)
    mixings = matrices(model, x)
    assert len(mixings) == 3
    own = model.stages[0][0][0].branch
    V_KNN, grid = mixings["stages.0.0.0.branch"]
    given = torch.randn(2, 4, 4, 32)
    if mixer not in ("attention", "attention_window", "set_attention", "token_mlp", "gate", "toeplitz_projected",
                     "distance"):  # fmt: skip
        each = V_KNN.repeat_interleave(32 // len(V_KNN), 0).float()
        applied = torch.einsum("cij,bjc->bic", each, given.flatten(1, 2)).reshape(given.shape)
        assert torch.allclose(own(given), applied, atol=1e-5)
    if mixer in ("toeplitz", "kernel", "depthwise", "circulant_c", "toeplitz_projected") and own.order is None:
        assert found(V_KNN, grid)["geometry"].value == pytest.approx(1, abs=1e-5)
    if mixer == "axial" and own.order is None:
        expected = torch.kron(own.value("rows"), own.value("columns"))
        assert torch.allclose(V_KNN[0], expected.double(), atol=1e-6)
    # As it is in the image's order, a scrambled convolution is none; its own order brings it back.
    if mixer in ("toeplitz", "depthwise") and own.order is not None:
        assert found(V_KNN, grid)["geometry"].value < 0.3
        ordered = V_KNN[:, own.order][:, :, own.order]
        assert found(ordered, grid)["geometry"].value == pytest.approx(1, abs=1e-5)


def subject_of(model, start, run):
    images = [(normal(8, 1, 8, 8).float(), torch.zeros(8, dtype=torch.long))]
    wrap = (lambda net: Rearranged(net, permuted(run))) if run.permute != "none" else (lambda net: net)
    return Subject(wrap(model).eval(), images, 8, 10, 2, wrap(start).eval())


def test_a_planted_convolution_is_found_in_the_change_and_undone_where_patches_were_permuted():
    run = make_run({"model": "resmlp_nano", "permute": "patches", "seed": 3})
    start = randomise(archs.create("resmlp_nano"))
    model, V = archs.create("resmlp_nano"), convolution((4, 4), gaussian(0.8))[0].float()
    model.load_state_dict(start.state_dict())
    for block in model.blocks():
        block[0].branch.mix.weight.data += 0.1 * V
    found = toeplitz.measure(subject_of(model, start, make_run({"model": "resmlp_nano"})))
    assert found["geometry_change"].value == pytest.approx(1, abs=1e-3)
    assert found["geometry"].value < 0.5 and found["geometry_start"].value < 0.1
    assert "geometry_change_undone" not in found and found["geometry_change_2"].value > 0.99
    # On permuted patches the network's token i is the image's patch order[i].
    shuffled = permuted(run).reshape(4, 2, 4, 2)[:, 0, :, 0].reshape(-1)
    order = torch.from_numpy(shuffled // 16 * 4 + shuffled % 8 // 2)
    for block, before in zip(model.blocks(), start.blocks(), strict=True):
        block[0].branch.mix.weight.data = before[0].branch.mix.weight.data + 0.1 * V[order][:, order]
    found = toeplitz.measure(subject_of(model, start, run))
    assert found["geometry_change"].value < 0.4 and found["geometry_change_undone"].value > 0.99
    assert toeplitz.draw(subject_of(model, start, run)).startswith(b"\x89PNG")


def test_a_model_without_tokens_or_that_is_not_ours_has_none():
    run = make_run({"model": "bmlp_nano"})
    assert toeplitz.measure(subject_of(archs.create("bmlp_nano"), archs.create("bmlp_nano"), run)) == {}
    assert mixing.matrices(nn.Flatten(), torch.zeros(1, 1, 8, 8)) == {}
