"""TensorBoard and wandb mirror summary.csv; a run that was stopped continues the same curves."""

import time

import pytest

from analysis.compare import frames
from engine.errors import Refusal
from engine.folder import store
from engine.train import train


def stopped_and_resumed(run, folder, how):
    count = iter(range(100))
    with pytest.raises(Refusal):
        train(run, folder, how, lambda: 75 if next(count) == 7 else 0)  # in the second of three epochs
    train(run, folder, how)
    return store.read_summary(folder)


def test_tensorboard_shows_each_epoch_once(tiny, how, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = stopped_and_resumed(tiny, tmp_path, how.model_copy(update={"log_tensorboard": True}))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {*events.Tags()["scalars"]} == {*rows[0]} - {"epoch"}
    for key in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(key)]
        assert points == [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in rows]
    reported = frames.load([tmp_path], [tiny]).iloc[0]
    for key, column in (("eval_top1", "acc1"), ("train_loss", "train_loss")):
        assert events.Scalars(key)[-1].value == pytest.approx(reported[column], rel=1e-6), "the report says the same"


def leveldb_records(data, block=32_768, header=7):
    """The records of LevelDB's log format, in which wandb writes its files after a header of 7 bytes."""
    place, parts = header, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def ended(path, kind, seconds=120):
    """All records of an attempt that has ended: wandb's own process may still write when `finish` has returned."""
    deadline = time.monotonic() + seconds
    while True:
        records = [kind.FromString(data) for data in leveldb_records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, [record.WhichOneof("record_type") for record in records]
        time.sleep(0.1)


def test_wandb_offline_continues_one_run(tiny, how, tmp_path, monkeypatch):
    """Each attempt is a folder that `wandb sync` merges, as both carry the same id: the run's signature."""
    from wandb.proto import wandb_internal_pb2

    for key in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    rows = stopped_and_resumed(tiny, tmp_path / "run", how.model_copy(update={"log_wandb": True}))
    attempts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(attempts) == 2 and all(path.name.endswith(tiny.signature) for path in attempts)
    seen = {}
    for path in attempts:
        for record in ended(next(path.glob("*.wandb")), wandb_internal_pb2.Record):
            if record.WhichOneof("record_type") == "history":
                values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                seen[int(values["_step"])] = {key: float(values[key]) for key in values if not key.startswith("_")}
    assert seen == {int(row["epoch"]): {key: row[key] for key in row if key != "epoch"} for row in rows}


def test_an_epoch_that_was_not_evaluated_has_no_point(tiny, how, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny, tmp_path, how.model_copy(update={"log_tensorboard": True, "val_interval": 2}))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("eval_top1")] == [1, 2]
