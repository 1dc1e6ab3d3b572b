"""CKA: the estimator against its definition, invariances, chance, and pairs of models whose likeness is known."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from analysis.bias import pairs
from analysis.bias.probe import Subject
from analysis.measures.alike import cka, hsic, products, shared_neighbours
from analysis.probes import cka as probe
from engine.errors import Refusal


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_hsic_is_the_u_statistic():
    x, y = noise(6, 2), noise(6, 3, seed=1)
    k, l = (x @ x.T).numpy(), (y @ y.T).numpy()  # noqa: E741
    four = list(itertools.permutations(range(6), 4))
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in four]  # Song et al. 2012, theorem 2
    assert hsic(torch.from_numpy(k), torch.from_numpy(l)) == pytest.approx(np.mean(terms))


def test_equal_is_one_whatever_is_turned_or_scaled_and_unrelated_is_zero():
    x = noise(60, 10)
    turn = torch.linalg.qr(noise(10, 10, seed=1))[0]
    found = cka(products([x, 3 * x @ turn, x + 5, x @ noise(10, 10, seed=2)]))
    assert np.allclose(found[:3, :3], 1) and 0.2 < found[0, 3] < 0.95
    unrelated = np.mean([products([noise(30, 50, seed=2 * i), noise(30, 50, seed=2 * i + 1)]) for i in range(60)], 0)
    assert abs(cka(unrelated)[0, 1]) < 0.05
    # The biased estimator would give 50 dimensions on 30 images more than one half.
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    k, l = (centre @ noise(30, 50, seed=seed) for seed in (0, 1))  # noqa: E741
    biased = ((k @ k.T) * (l @ l.T)).sum() / ((k @ k.T).norm() * (l @ l.T).norm())
    assert biased > 0.5


def test_two_parts_in_common_have_their_closed_form():
    # Features (a, b) and (a, c) of independent white parts: HSIC is the sum of squared cross-covariances.
    parts = [noise(4000, 8, seed=s) for s in range(3)]
    x, y = torch.cat(parts[:2], 1), torch.cat([parts[0], parts[2]], 1)
    batches = np.mean([products([x[i : i + 100], y[i : i + 100]]) for i in range(0, 4000, 100)], 0)
    assert cka(batches)[0, 1] == pytest.approx(8 / 16, abs=0.03)


def test_neighbours_are_shared_as_they_are():
    x = noise(200, 6)
    assert (shared_neighbours(x, 2 * x @ torch.linalg.qr(noise(6, 6, seed=1))[0]) == 100).all()
    assert shared_neighbours(x, noise(200, 6, seed=3)).mean() == pytest.approx(100 * 10 / 199, abs=2)


class Layers(nn.Module):
    """Shows given maps of the image."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = maps

    def forward_intermediates(self, x, intermediates_only):
        return [each(x) for each in self.maps]

    def forward(self, x):
        return x.mean((2, 3))


def subject(*maps, count=420):
    x = noise(count, 2, 4, 4).float()
    return Subject(Layers(*maps), [(part, torch.zeros(len(part), dtype=int)) for part in x.split(64)], 4, 2)


def same(x):
    return x


def other(x):
    """A function of the image that no linear one is like."""
    return x.roll(1, 2) * x


def test_the_probe_of_blocks_whose_likeness_is_known():
    found = probe.measure(subject(same, lambda x: -2 * x, other, lambda x: other(x).flip(1)))
    assert found["neighbours"].value == pytest.approx(2 / 3, abs=0.03), "one, about zero, one"
    assert abs(found["ends"].value) < 0.06 and found["ends"].low < 0.06 and found["ends"].null == 0
    assert found["to_last_3"].value == pytest.approx(1) and found["pairs"].value == pytest.approx(1 / 3, abs=0.05)
    assert set(found) == {"neighbours", "ends", "pairs", "to_last_1", "to_last_2", "to_last_3"}
    assert probe.draw(subject(same, other)).startswith(b"\x89PNG")
    assert probe.measure(subject(same)) == {} and probe.draw(subject(same)) is None


def test_two_models_are_compared_at_the_same_depth():
    first = subject(other, same)
    alike = pairs.compare(first, subject(other, other, same, lambda x: 3 * x))
    assert alike["cka_last"].value == pytest.approx(1) and alike["cka_depth"].value == pytest.approx(1)
    assert alike["neighbours"].value > 99 and alike["neighbours"].null == pytest.approx(1000 / 419)
    turned = pairs.compare(first, subject(same, other))
    assert abs(turned["cka_last"].value) < 0.06 and abs(turned["cka_depth"].value) < 0.06
    assert pairs.compare(first, Subject(nn.Flatten(), first.images, 4, 2)) == {}


def test_the_command_compares_runs_and_refuses_other_images(tmp_path, digits, how):
    from engine.folder import store
    from engine.run import make_run
    from engine.train import train
    from tests.analysis.test_probes import script

    folders = []
    for seed in (0, 1):
        run = make_run({"model": "mixer_nano", "epochs": 1, "batch_size": 64, "lr": 4e-3, "seed": seed})
        folders.append(store.folder_of(run, tmp_path))
        train(run, folders[-1], how)
    done = script(*folders, "--probe", "cka", "--against", folders[0], "--data-dir", digits, "--threads", "1")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition(f"against {folders[0].name}")[2]
    assert folders[1].name[:8] in table and folders[0].name[:8] not in table, "a run is not compared with itself"
    assert all(word in done.stdout for word in ("neighbours", "cka_last", "cka_depth", "null 2.0"))
    larger = store.folder_of(make_run({"model": "mixer_nano", "img_size": 16}), tmp_path)
    store.make_folder(make_run({"model": "mixer_nano", "img_size": 16}), larger)
    with pytest.raises(Refusal, match=r"img_size is 16, of .* 8; compare runs that see the same images"):
        pairs.against([larger], folders[0], how)
    done = script(folders[1], "--probe", "cka", "--against", tmp_path / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "--against" in done.stderr
