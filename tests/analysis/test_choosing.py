"""Which layers can lose their attention: each criterion against a computation of its own, in float64."""

import shlex

import numpy as np
import pytest
import torch
from torch import nn

import archs
from analysis import choosing
from analysis.figures.draw import standalone
from analysis.figures.removal_figures import choices
from analysis.probes.receptive_field import randomise
from analysis.removal import asking, ranks, sheets
from analysis.removal.passes import Moments, Passes, counts
from analysis.removal.subject import Subject, open_subject
from engine.cli.console import add_flags
from engine.cli.flags import Parser, collect
from engine.errors import Refusal
from engine.run import make_how, make_run
from engine.train import train
from scripts import choose_layers

NUM, BATCH = 37, 8


def subject(**given):
    torch.manual_seed(3)
    model = randomise(archs.create("deit_nano", depth=4, dim=16, num_classes=5, **given)).double().eval()
    x, y = torch.randn(NUM, 1, 8, 8, dtype=torch.float64), torch.arange(NUM) % 5
    return Subject(model, lambda: (pair for pair in zip(x.split(BATCH), y.split(BATCH), strict=True)), NUM, BATCH), x, y


def forward(model, x, skipped=(), left=lambda i, z: z):
    """Pooled features and logits, layer by layer, where `left` stands for the attention half of skipped layers."""
    z = model.embed(x)
    for i, layer in enumerate(model.stages[0]):
        z = left(i, z) if i in skipped else layer[0](z)
        z = layer[1](z)
    pooled = model.pool(model.norm(z))
    return pooled, model.head(pooled)


def entropies(model, x, skipped=(), left=lambda i, z: z):
    """As the removal's code computes them: np.log of np.std, and torch.log2 of torch.std."""
    pooled, logits = forward(model, x, skipped, left)
    with np.errstate(divide="ignore"):  # without any attention the class token is the same in all images
        token = np.log(np.std(pooled.numpy(), axis=0)).sum()
    return token, torch.log2(torch.std(logits, 0)).sum().item()


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("skip", ["x", "2x"])
def test_entropies_are_the_published_estimators(pool, skip):
    made, x, _ = subject(global_pool=pool)
    passes = Passes(made, ["token_entropy", "head_entropy"], skip, 3)
    left = {"x": lambda i, z: z, "2x": lambda i, z: 2 * z}[skip]
    for skipped in ((), (1,), (0, 3)):
        expected = entropies(made.model, x, skipped, left)
        for name, value in zip(("token_entropy", "head_entropy"), expected, strict=True):
            assert passes.values(name, skipped)[0].item() == pytest.approx(value, abs=1e-9)
    whole, without = entropies(made.model, x)[0], entropies(made.model, x, (2,), left)[0]
    ranking = ranks.rank(passes, "token_entropy", 1)
    assert ranking.costs[2] == pytest.approx(whole - without, abs=1e-9)


@torch.no_grad()
def test_bootstraps_are_those_of_the_images_themselves():
    """Moments with counts give what the estimator gives of the images drawn, one by one."""
    made, x, y = subject()
    passes = Passes(made, ["token_entropy", "head_entropy", "ablation", "cosine"], "x", 4)
    drawn = counts(NUM, 4)
    assert (drawn.sum(1) == NUM).all() and (drawn[0] == 1).all() and len({row.tobytes() for row in drawn}) == 5
    for row in range(5):
        again = np.repeat(np.arange(NUM), drawn[row])
        token, head = entropies(made.model, x[again], (1, 2))
        assert passes.values("token_entropy", (1, 2))[row].item() == pytest.approx(token, abs=1e-9)
        assert passes.values("head_entropy", (1, 2))[row].item() == pytest.approx(head, abs=1e-9)
        hits = forward(made.model, x[again])[1].argmax(1) == y[again]
        assert passes.values("ablation")[row].item() == pytest.approx(100 * hits.double().mean().item())


@torch.no_grad()
def test_cosine_is_that_of_input_and_output():
    made, x, _ = subject()
    z, expected = made.model.embed(x), []
    for layer in made.model.stages[0]:
        y = layer[0](z)
        expected.append(1 - ((z * y).sum(-1) / (z.norm(dim=-1) * y.norm(dim=-1))).mean().item())
        z = layer[1](y)
    found = Passes(made, ["cosine"], "x", 0).values("cosine")[0]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-12)


@torch.no_grad()
def test_ablation_puts_the_mean_of_all_images_in_place():
    made, x, y = subject()
    z, means = made.model.embed(x), []
    for layer in made.model.stages[0]:
        after = layer[0](z)
        means.append((after - z).mean(0))
        z = layer[1](after)
    passes = Passes(made, ["ablation"], "x", 0)
    accuracy = [
        100 * (forward(made.model, x, skipped, lambda i, z: z + means[i])[1].argmax(1) == y).double().mean().item()
        for skipped in ((), (0,), (1,), (2,), (3,), (0, 2))
    ]
    costs = ranks.rank(passes, "ablation", 1).costs
    assert costs == pytest.approx(accuracy[0] - np.array(accuracy[1:5]))
    assert passes.values("ablation", (0, 2))[0].item() == pytest.approx(accuracy[5])


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_greedy_asks_again_after_each_pick(k):
    made, x, _ = subject()
    passes = Passes(made, ["token_entropy"], "x", 0)
    found = ranks.rank(passes, "token_entropy", k, greedy=True)
    picked = []
    for _ in range(k):
        values = {i: entropies(made.model, x, (*picked, i))[0] for i in range(4) if i not in picked}
        picked.append(max(values, key=values.get))  # the least entropy lost
    assert found.orders[0, :k].tolist() == picked
    assert sorted(found.orders[0]) == [0, 1, 2, 3]
    assert passes.done == ranks.num_passes(["token_entropy"], 4, k, True)[0]
    assert ranks.rank(passes, "token_entropy", k).orders[0, 0] == picked[0]


def test_resamples_go_their_own_way_and_no_set_is_looked_at_twice():
    made, _, _ = subject()
    with torch.no_grad():
        passes = Passes(made, ["token_entropy", "head_entropy", "ablation"], "x", 60)
        for name in ("token_entropy", "head_entropy", "ablation"):
            ranking = ranks.rank(passes, name, 2, greedy=True)
            for row in range(61):
                alone = ranks._greedy(passes, name, 2, row)[0]
                assert ranking.orders[row].tolist() == alone
            shares = ranking.frequency(2)
            assert shares.sum() == pytest.approx(2) and 0 <= ranking.same(2) <= 1
    least, most = ranks.num_passes(["token_entropy", "head_entropy", "ablation"], 4, 2, True)
    assert (least, most) == (1 + 2 * (4 + 3), 1 + 2 * (4 + 6)) and least <= passes.done <= most


def test_the_model_is_left_as_it_was():
    made, x, _ = subject()
    with torch.no_grad():
        before, halves = made.model(x), made.halves
        asking.rankings(made, choosing.names(), 2, resamples=2)
        assert torch.equal(made.model(x), before) and made.halves == halves
        with pytest.raises(RuntimeError), made.without([0], "2x"):
            raise RuntimeError
        assert made.halves == halves and not any(half._forward_hooks for half in halves)


@torch.no_grad()
def test_both_ways_to_skip_give_rankings_of_their_own():
    made, x, _ = subject()
    found = asking.rankings(made, ["token_entropy", "cosine"], 2, estimate="once", skip=["x", "2x"], resamples=0)
    assert [ranking.label for ranking in found] == ["token_entropy, once, x", "token_entropy, once, 2x", "cosine"]
    for ranking, factor in zip(found, (1, 2), strict=False):
        without = entropies(made.model, x, (1,), lambda i, z, factor=factor: factor * z)[0]
        assert ranking.costs[1] == pytest.approx(entropies(made.model, x)[0] - without, abs=1e-9)
    assert "10 passes" in asking.takes(made, ["token_entropy", "cosine"], 2, estimate="once", skip=["x", "2x"])


def test_controls_ask_no_model():
    made, _, _ = subject(mlp_layers=[1])
    assert made.layers == [0, 2, 3]
    first, last, chance = asking.rankings(made, ["first_layers", "last_layers", "random_layers"], 2)
    assert (first.chosen(2), last.chosen(2)) == ([0, 2], [2, 3])
    assert chance.drawn and chance.orders.shape == (10, 3) and all(sorted(row) == [0, 2, 3] for row in chance.orders)
    assert len({tuple(row) for row in chance.orders}) > 3
    assert asking.takes(made, ["first_layers"], 1) == "no images are looked at"


def test_equal_costs_go_by_the_number_of_the_layer():
    ranking = ranks.by_rule("first_layers", [4, 5, 6], np.zeros((1, 3)))
    assert ranking.orders.tolist() == [[4, 5, 6]]


def test_deviations_keep_their_digits():
    """Features far from zero, whose squares would swallow the spread."""
    x = 1e6 + torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    shift = x[:10].mean(0)
    moments = Moments(1000, shift, (x - shift).sum(0)[None], ((x - shift) ** 2).sum(0)[None])
    assert moments.deviation(1)[0].numpy() == pytest.approx(x.std(0).numpy(), rel=1e-6)
    assert moments.mean[0].numpy() == pytest.approx(x.mean(0).numpy(), rel=1e-14)


def test_rank_correlation_and_overlap_by_hand():
    from scipy.stats import spearmanr

    a, b = np.array([0, 1, 2, 3, 4.0]), np.array([1, 0, 2, 2, 5.0])
    assert ranks.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert ranks.spearman(a, -a) == -1 and np.isnan(ranks.spearman(a, np.zeros(5)))
    assert ranks.agreement([[0, 1], [1, 2], [0, 1]]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert np.isnan(ranks.agreement([[0]]))


def test_what_cannot_be_asked_is_refused():
    made, _, _ = subject()
    with torch.no_grad():
        made.model.norm.weight.zero_()  # every feature the same in all images
        with pytest.raises(Refusal, match=r"token_entropy is .*inf of the whole model"):
            ranks.rank(Passes(made, ["token_entropy"], "x", 0), "token_entropy", 1)
    with pytest.raises(Refusal, match=r"unknown criterion 'cosin'; did you mean 'cosine'\?"):
        choosing.check(["cosin"])


@pytest.mark.parametrize("name", choosing.names())
def test_a_criterion_says_what_it_is(name):
    own = choosing.read(name)
    assert own["COST"] and own["form"] in ("sets", "layers", "orders")
    assert sheets.meanings([name], ["2x"])[0].startswith(f"{name}: {own['COST']}")


# --- the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("run")
        fields = {"model": "deit_nano", "model_kwargs": {"depth": 3, "dim": 16}, "epochs": 3, "lr": 5e-3, "seed": seed}
        train(make_run({**fields, "holdout": 0.2}), folder, make_how({"data_dir": digits, "threads": 1}))
        folders.append(folder)
    return folders


def test_the_command_ends_with_a_line_that_trains(runs, digits, tmp_path, monkeypatch, capsys):
    words = [*map(str, runs), "-k", "1", "--resamples", "5", "--images", "200", "--threads", "1"]
    words += ["--data-dir", str(digits), "--figure", str(tmp_path / "c.svg"), "--results-file", str(tmp_path / "c.csv")]
    monkeypatch.setattr("sys.argv", ["choose_layers.py", *words])
    choose_layers.main()
    out, err = capsys.readouterr()
    assert err.count("200 images, ") == 2 and "memory" in err
    for part in ("cost of each layer", "over 2 checkpoints", "rank correlation", "nats without the constant"):
        assert part in out
    assert (tmp_path / "c.svg").read_text().startswith("<svg xmlns")
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1 + 2 * (9 + 10) * 3  # of ten draws each
    line = shlex.split(out.splitlines()[-1])
    assert line[:2] == ["python", "scripts/train.py"]
    parser = Parser(prog="scripts/train.py")
    add_flags(parser)
    run, _ = collect(parser.parse(line[2:]))
    assert run.dilute_layers in "012" and run.initial_checkpoint == str(runs[0])
    assert run.rung == f"deit_nano depth=3 dim=16 mlp_layers=[{run.dilute_layers}]"


def test_images_that_were_held_out_are_not_looked_at(runs, digits):
    how = make_how({"data_dir": digits, "threads": 1})
    made, run = open_subject(runs[0], {}, "train", 10**6, how)
    assert run.holdout == 0.2 and 0.7 * 1297 < made.num_images < 0.9 * 1297
    first = [images.clone() for images, _ in made.images()]
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, made.images(), strict=True))
    assert open_subject(runs[0], {}, "val", 10**6, how)[0].num_images == 500
    assert open_subject(runs[0], {}, "train", 50, how)[0].num_images == 50


def test_the_figure_shows_every_ranking():
    made, _, _ = subject()
    with torch.no_grad():
        found = asking.rankings(made, ["token_entropy", "first_layers"], 2, resamples=3)
    figure = standalone(choices(found, 2, "3 bootstraps"))
    assert all(ranking.label in figure for ranking in found) and figure.count("chosen in") >= 4


def test_models_without_attention_to_skip_are_refused(tmp_path, digits):
    how = make_how({"data_dir": digits, "threads": 1})
    for fields, words in (
        ({"model": "gmlp_nano"}, "gmlp_nano has no attention or other mixing of tokens in a residual of its own"),
        ({"model": "deit_nano", "model_kwargs": ["merge_r=2"]}, "merges tokens.*leave out merge_r"),
        ({"model": "deit_nano", "model_kwargs": ["mlp_layers=0,1"]}, "has no attention left"),
    ):
        path = tmp_path / "weights.pth"
        torch.save(nn.Linear(1, 1).state_dict(), path)
        with pytest.raises(Refusal, match=words):
            open_subject(path, {**fields, "dataset": "digits"}, "val", 10, how)
