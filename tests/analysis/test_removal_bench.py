"""The bench of removals: starts against a model put together by hand, differences against what was put in."""

import math

import numpy as np
import pytest
import torch

import archs
from analysis.figures import draw, removal_figures
from analysis.probes.receptive_field import randomise
from analysis.removal import before, bench, measured, speed
from engine.cli.tables import read as read_rows
from engine.cli.tables import write
from engine.data import loaders, normalize
from engine.errors import Refusal
from engine.fields.choices import Choice
from engine.folder import checkpoint, store
from engine.folder.weights import read
from engine.run import Run, make_how
from engine.train import train
from slurm.define import removal

SOURCE = {"model": "deit_nano", "model_kwargs": {"depth": 3, "dim": 16}, "epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def source(tmp_path_factory, digits):
    place = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTMLP_RESULTS", str(place))
        run, how = Run(**SOURCE, train_samples=128), make_how({"data_dir": digits, "threads": 1})
        train(run, store.folder_of(run), how)
        path = store.folder_of(run) / "last.pth.tar"
        file = read(path)
        torch.manual_seed(0)  # weights of which every layer counts, as those of one epoch do not
        file["state_dict"] = randomise(archs.create("deit_nano", depth=3, dim=16)).state_dict()
        checkpoint.write(path, file)
        yield run, how, place


def by_hand(run, how, factor, layers):
    """Logits and labels, layer by layer from the source's weights, without the code that removes."""
    _, loader, facts = loaders.make_loaders(run, how)
    model = archs.create("deit_nano", depth=3, dim=16).eval()
    model.load_state_dict(read(store.folder_of(run) / "last.pth.tar")["state_dict"])
    prepare = normalize.make_prepare(run, facts, torch.device("cpu"))
    logits, answers = [], []
    for images, labels in loader.epoch(0):
        z = model.embed(prepare(images))
        for i, layer in enumerate(model.stages[0]):
            z = layer[1](factor * z if i in layers else layer[0](z))
        logits.append(model.head(model.norm(z)[:, 0]))
        answers.append(labels.clone())
    return torch.cat(logits), torch.cat(answers)


@torch.no_grad()
def test_starts_are_the_source_without_its_attention(source, monkeypatch):
    run, how, place = source
    budget = {"epochs": 2, "lr": 1e-3}
    known = [Choice(run.signature, "cosine", "", (2, 0, 1))]
    known.append(Choice(run.signature, "random_layers", "draw 1", (1, 0, 2)))
    # Accuracy alone of what nobody heals, and all numbers of it once they are asked for.
    first, (_, origin) = (
        removal.start(run, (1,), "drop", budget),
        before.of_source(run.signature, store.folder_of(run), place / "x.csv", how),
    )
    alone = before.of_start(first, place / "x.csv", how, probed=False, origin=origin)
    again = before.of_start(first, place / "x.csv", how, probed=True, origin=origin)
    assert alone == {"acc": again["acc"]} and len(again) > 3
    starts = [removal.start(run, (0, 2), way, budget) for way in ("drop", "double", "linear", "depthwise")]
    whole, drop, double = (by_hand(run, how, factor, layers) for factor, layers in ((1, ()), (1, (0, 2)), (2, (0, 2))))
    assert not whole[0].allclose(drop[0], atol=1e-2) and not drop[0].allclose(double[0], atol=1e-2)
    for start, (expected, _) in zip(starts, (drop, double, double), strict=False):
        subject = before.open_start(start, how)
        assert torch.cat([subject.model(x) for x, _ in subject.images]).allclose(expected, atol=1e-4)
    (place / "study").mkdir()
    timed = [
        {"model": "deit_nano", "layers_gone": gone, "replacement": kind, "batch_size": 8, "merged": merged, **rate}
        for gone, kind, merged, rate in (
            (2, "skip", False, {"images_per_s": 10.0}),
            (2, "skip", True, {"images_per_s": 12.0}),
            (2, "double", False, {"images_per_s": 9.0}),
            (1, "depthwise", False, {"images_per_s": 5.0}),
        )
    ]
    write(place / "study" / measured.SPEEDS, timed)
    rows = measured.rows([(each, removal.way_of(each), True) for each in starts], known, place / "study", how)
    assert [row.get("images_per_s b8") for row in rows] == [10, 9, 9, None]
    assert rows[0]["images_per_s b8 merged"] == 12 and {row["images_seen"] for row in rows} == {2 * 128}
    assert [row["way"] for row in rows] == ["drop", "double", "linear", "depthwise"]
    assert {row["criterion"] for row in rows} == {"cosine"} and {row["share"] for row in rows} == {66.67}
    rates = [100 * (logits.argmax(1) == labels).double().mean().item() for logits, labels in (whole, drop, double)]
    for row, value in zip(rows[:3], (rates[1], rates[2], rates[2]), strict=True):
        assert row["acc_before"] == pytest.approx(value, abs=1e-5)
        assert row["acc_whole"] == pytest.approx(rates[0], abs=1e-5)
        assert row["acc_after"] is None and "patch_shuffle R_2 before" in row and "shift consistency_1 whole" in row
    assert rows[0]["params"] == rows[1]["params"] < rows[3]["params"]
    with torch.enable_grad():
        train(starts[0], store.folder_of(starts[0]), how)
    rows = measured.rows([(each, removal.way_of(each), True) for each in starts], known, place / "study", how)
    assert [row["acc_after"] is None for row in rows] == [False, True, True, True]
    for opens in ((before, "open_start"), (before.probe_runs, "open_run")):
        monkeypatch.setattr(*opens, lambda *given: pytest.fail("measured twice"))
    again = measured.rows([(each, removal.way_of(each), True) for each in starts], known, place / "study", how)
    assert again == rows
    # The table alone says the same, as in a clone.
    monkeypatch.setenv("SOFTMLP_RESULTS", str(place / "elsewhere"))
    there = [removal.start(run, (0, 2), removal.way_of(each), budget) for each in starts]
    assert measured.rows([(each, removal.way_of(each), True) for each in there], known, place / "study", how) == rows
    with pytest.raises(Refusal, match=r"has no row of deit_nano .*mlp_layers=\[1\].* is not here to measure it"):
        measured.rows([(removal.start(run, (1,), "drop", budget), "drop", True)], known, place / "study", how)
    # What healed from other weights of the source is another study's, and a row of other code nobody's.
    table = place / "study" / before.FILE
    told = read_rows(table)
    others = [{**row, "origin": "0" * 16} if row["key"] == there[0].signature else row for row in told]
    write(table, others)
    assert measured.rows([(there[0], "drop", True)], known, place / "study", how)[0]["acc_after"] is None
    write(table, [{**row, "code": "older"} for row in told])
    with pytest.raises(Refusal, match="is not finished: it comes first"):
        measured.rows([(there[0], "drop", True)], known, place / "study", how)


def test_a_source_that_is_not_finished_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path))
    start = removal.start(Run(**SOURCE), (0,), "drop", {"epochs": 2})
    with pytest.raises(Refusal, match="is not finished"):
        measured.rows([(start, "drop", True)], [], tmp_path, make_how({}))


def synthetic(noise=0.0, seeds=4):
    """Accuracy = 70 + 2 if by cosine + 1 if double + seed, with chance from draws of -1, 0 and +1."""
    rng, rows = np.random.default_rng(0), []
    names = {"cosine": 2.0, **{f"random_layers, draw {i}": i - 2.0 for i in (1, 2, 3)}}
    for seed in range(seeds):
        for name, gain in names.items():
            for way, more in (("drop", 0.0), ("double", 1.0)):
                value = 70 + gain + more + seed + noise * rng.standard_normal()
                row = {"source": str(seed), "seed": seed, "criterion": name, "share": 50.0, "way": way}
                rows.append({**row, "acc_whole": 80.0, "acc_before": value - 20, "acc_after": value})
    return rows


def test_differences_are_those_that_were_put_in():
    found = bench.effects(bench.table(synthetic()), 0.5)
    told = {(row.family, row.asked, row.way): row.mean for row in found.itertuples()}
    assert told == {
        ("criterion", "cosine", "drop"): pytest.approx(2), ("criterion", "cosine", "double"): pytest.approx(2),
        ("way", "cosine", "double"): pytest.approx(1), ("way", "random_layers", "double"): pytest.approx(1),
    }  # fmt: skip
    noisy = bench.effects(bench.table(synthetic(0.3)), 0.5)
    assert (noisy["p_holm"].dropna() >= noisy["p"].dropna()).all() and (noisy["n"] == 4).all()
    assert noisy[noisy.family == "criterion"]["p_holm"].max() < 0.05
    means = bench.cells(bench.table(synthetic())).set_index(["asked", "way", "when"])["mean"]
    assert means["random_layers", "drop", "after"] == pytest.approx(71.5)
    assert means["cosine", "double", "before"] == pytest.approx(54.5)


def test_what_was_chosen_by_coincidence_is_not_counted():
    rows = synthetic() + [{**row, "criterion": "first_layers"} for row in synthetic() if row["criterion"] == "cosine"]
    assert "first_layers" in set(bench.effects(bench.table(rows), 0.5)["asked"])
    for kind in (bool, str):  # from the table, it is text
        told = [{**row, "claimed": kind(row["criterion"] != "first_layers")} for row in rows]
        assert set(bench.effects(bench.table(told), 0.5)["asked"]) == {"cosine", "random_layers"}


def test_labels_are_of_the_set_and_nothing_is_chosen_where_all_go():
    known = [Choice("a", "x", "", (2, 0, 1)), Choice("a", "y", "", (0, 2, 1)), Choice("b", "z", "", (0, 2, 1))]
    assert bench.labels(known, "a", [0, 2]) == ["x", "y"] and bench.labels(known, "a", [2]) == ["x"]
    assert bench.labels(known, "a", [0, 1, 2]) == ["all layers"] and bench.labels(known, "c", [0]) == []


def test_tables_and_figure_hold_every_cell():
    frame = bench.table(synthetic(0.1))
    figure = draw.standalone(removal_figures.bench(frame))
    for way in ("drop", "double"):
        for asked in ("cosine", "random_layers"):
            assert all(f"<title>{asked}, {way}, {when} healing" in figure for when in ("before", "after"))
    sheet = bench.sheet(frame)
    assert len(sheet.rows) == 4 and all(len(row) == len(sheet.header) for row in sheet.rows)
    effects = bench.effect_sheet(frame, 0.5)
    assert len(effects.rows) == 4 and all(len(row) == len(effects.header) for row in effects.rows)


def test_half_of_the_tokens_go_where_they_are_merged():
    assert speed.merge_r(64, 8) == 4 and speed.merge_r(64, 4) == 8 and speed.merge_r(4, 8) == 1
    run = Run(model="deit_nano", model_kwargs={"mlp_layers": [0]})
    rows = speed.measure(run, 10, 1, amp=False, batches=(2,))
    assert [row["merged"] for row in rows] == [False, True]
    assert all(row["images_per_s"] > 0 and math.isfinite(row["speedup"]) for row in rows)
    mixed = Run(model="deit_nano", model_kwargs={"mlp_layers": [0], "replacement": "depthwise"})
    assert [row["merged"] for row in speed.measure(mixed, 10, 1, amp=False, batches=(2,))] == [False]
