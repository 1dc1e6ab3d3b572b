"""scripts/minimal.py, plain PyTorch in a hundred lines, and the engine give the same numbers."""

import pytest
import torch

from engine.folder import checkpoint, store
from engine.run import make_run
from engine.train import train
from scripts import minimal


@pytest.mark.parametrize("model", ["bmlp_nano", "mixer_nano", "convmixer_nano", "deit_nano"])
def test_the_engine_gives_the_numbers_of_plain_pytorch(model, how, tmp_path, capsys):
    fields = {"epochs": 2, "batch_size": 64, "lr": 2e-3, "seed": 3}
    torch.set_num_threads(1)
    plain = minimal.train(model, "digits", tmp_path, **fields)
    run = make_run({"model": model, **fields})
    train(run, tmp_path / "run", how)
    ours = checkpoint.read(tmp_path / "run" / "last.pth.tar")["state_dict"]
    assert ours.keys() == plain.state_dict().keys()
    assert [key for key, value in plain.state_dict().items() if not torch.equal(value, ours[key])] == []
    rows = store.read_summary(tmp_path / "run")
    lines = [
        f"epoch {i + 1}/2  train_loss {r['train_loss']:.4f}  acc1 {r['eval_top1']:.2f}" for i, r in enumerate(rows)
    ]
    assert capsys.readouterr().out.splitlines() == lines
