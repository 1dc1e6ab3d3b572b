"""What others report: every row fits the schema and is explained, what is from memory is refused, counts are right."""

import csv
import re
import shutil

import numpy as np
import pytest

from analysis import published
from engine.errors import Refusal
from scripts.bench import rank_pruning_leak as leak

ROWS = published.load()


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(published.FOLDER, tmp_path / "published")
    return tmp_path / "published"


def change(folder, column, value):
    """Set one cell of the first row of the first table."""
    path = sorted(folder.glob("*.csv"))[0]
    table = list(csv.reader(path.open()))
    table[1][table[0].index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def test_tables_are_there_and_complete():
    assert {"S1", "S2a", "S2b", "S2c", "S2d", "S2e", "S3", "S4a", "S4b"} <= set(ROWS["table_id"])
    assert len(ROWS) > 400 and set(ROWS["evidence"]) == {"V", "S", "C"}
    assert ROWS["value"].notna().all() and (ROWS["value"] > 0).all()


def test_every_flag_and_source_of_the_readme_is_used():
    used = set(ROWS["source_id"]) | {flag for flags in ROWS["flag"] for flag in flags.split(";") if flag}
    explained = published._explained(published.FOLDER)
    assert {f"A{i}" for i in range(1, 13)} <= explained
    assert explained - used == {"A11"}  # of data, as it says


@pytest.mark.parametrize(
    "column, value, words",
    [
        ("evidence", "M", "M, from memory, is no evidence"),
        ("evidence", "", "evidence is empty"),
        ("value", "81,8", "'81,8' is no plain number"),
        ("value", "nan", "'nan' is no plain number"),
        ("value", "818", "more than 100 %"),
        ("unit", "points", "the unit of acc1 is %"),
        ("metric", "accuracy", "unknown metric 'accuracy'"),
        ("flag", "A1;A99", "'A99' is not explained"),
        ("source_id", "nobody/nothing", "'nobody/nothing' is not explained"),
        ("locator", " ", "locator is empty"),
    ],
)
def test_an_unfit_row_is_refused(folder, column, value, words):
    change(folder, column, value)
    with pytest.raises(Refusal, match=rf"attention_to_mlp.csv, row 1 .*{re.escape(words)}"):
        published.load(folder)


def test_two_values_for_one_thing_are_refused(folder):
    path = sorted(folder.glob("*.csv"))[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].replace("81.83", "81.84")]) + "\n")
    with pytest.raises(Refusal, match="two values for one thing"):
        published.load(folder)


def test_other_columns_are_refused(folder):
    path = sorted(folder.glob("*.csv"))[0]
    path.write_text(path.read_text().replace("table_id,", "table,", 1))
    with pytest.raises(Refusal, match="the columns must be table_id"):
        published.load(folder)


def value_of(**given):
    rows = ROWS
    for column, value in given.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, f"{given}: {len(rows)}"
    return rows.iloc[0]


def test_counted_mlps_follow_the_closed_form():
    """Params d m + m + L (8 m^2 + 7 m) + m K + K; MACs d m + 8 L m^2 + m K."""
    rows = ROWS[ROWS["table_id"] == "S1-counts"]
    assert len(rows) == 30
    for row in rows.itertuples():
        blocks, width = map(int, re.fullmatch(r"B_(\d+)-Wi_(\d+)", row.variant).groups())
        classes, inputs = (11_230 if "11,230" in row.protocol else 10), 3 * int(row.resolution) ** 2
        params = inputs * width + width + blocks * (8 * width**2 + 7 * width) + width * classes + classes
        macs = inputs * width + 8 * blocks * width**2 + width * classes
        assert row.value == pytest.approx((params if row.metric == "params" else macs) / 1e6, abs=0.006)


def test_published_sizes_are_those_of_our_zoo():
    """Counts of others that our own models must have, too."""
    from engine.cost.profile import profile

    cifar = {"img_size": 32, "in_chans": 3, "num_classes": 10}
    ours = profile("convmixer_w256_d8", **cifar)
    published_size = value_of(table_id="cifar-counts", model="ConvMixer")["value"]
    assert ours["params"] == round(1e6 * published_size) == 594_186
    theirs = value_of(source_id="aliborji/splitmixer", model="ConvMixer", dataset="cifar10")
    # They count with fvcore, which adds 4 per value that BatchNorm puts out: 17 layers of 256 channels on 16 x 16.
    assert (ours["macs"] + 4 * 17 * 256 * 16**2) / 1e9 == pytest.approx(theirs["gmacs"], abs=1e-4)
    assert theirs["params_m"] == pytest.approx(ours["params"] / 1e6, abs=0.01)


def test_flags_sit_on_the_rows_they_speak_of():
    assert value_of(dataset="fashion_mnist", metric="acc1", table_id="S3")["flag"] == "A1;A12"
    leaked = ROWS[(ROWS["source_id"] == "amazon-science/mlp-rank-pruning") & ROWS["metric"].isin(["acc1", "acc5"])]
    assert len(leaked) == 8 and leaked["flag"].str.contains("A12").all()
    flagged = ROWS[(ROWS["table_id"] == "S3") & (ROWS["flag"] == "A2")]
    assert set(flagged["metric"]) == {"train_acc1", "train_acc5"}
    assert all(abs(64 * value / 100 - round(64 * value / 100)) < 1e-3 for value in flagged["value"])
    lasso = ROWS[ROWS["flag"] == "A7"]
    assert sorted(lasso["value"]) == [57.76, 59.56, 84.50, 85.19, 93.84, 94.07]
    assert set(ROWS.loc[ROWS["variant"].str.contains("^(?:30|40)% of attention"), "flag"]) == {"A10"}


def test_accuracies_on_a_data_set_are_shown_apart():
    rows = published.about(["cifar10"])
    assert set(rows["dataset"]) == {"cifar10"} and set(rows["metric"]) == {"acc1"}
    assert rows["value"].is_monotonic_decreasing
    sheet = published.sheet(["cifar10"])
    assert len(sheet.rows) == len(rows) and "not measured here" in sheet.title
    assert published.sheet(["digits"]) is None


def test_nearly_every_validation_image_of_the_rank_pruning_baselines_was_trained_on():
    train, held_out = leak.splits(8, 0)
    assert train.shape == (8, 40_000) and held_out.shape == (8, 10_000)
    for own, other in zip(train, held_out, strict=True):
        assert len(np.union1d(own, other)) == 50_000
    shards = leak.shards(train, 3, 0)
    assert shards.shape == (8, 5000) and all(np.isin(shards[k], train[k]).all() for k in range(8))
    again = leak.shards(train[:1].repeat(8, 0), 3, 0)  # of one split the parts are disjoint and leave nothing out
    assert len(np.unique(again)) == 40_000 and not np.isin(again, held_out[0]).any()
    # Another process trains on an image in one epoch with probability 0.8 / 8; seven of them miss it with 0.9 ** 7.
    assert leak.trained_on(8, 1) == pytest.approx(1 - 0.9**7)
    assert leak.trained_on(8, 10**6) == pytest.approx(1 - 0.2**7, abs=1e-12)
    assert leak.trained_on(1, 200) == 0
    for epochs in (1, 4):
        assert leak.count(8, epochs, 0) == pytest.approx(leak.trained_on(8, epochs), abs=0.005)
