"""Weights from elsewhere into a run: another image size, other channels, other classes, and a run that starts so."""

import argparse
import builtins
import importlib
import sys
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import archs
from analysis.probes.receptive_field import randomise
from archs.mixer import resize
from archs.parts.convert import adapt
from engine import transfer
from engine.errors import CHECKPOINT, STOPPED, Refusal
from engine.folder import store
from engine.models import preflight
from engine.run import Run, make_run
from engine.train import train

GREY = {"img_size": 8, "num_classes": 10, "in_chans": 1}


def _images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _random(name: str, **given: Any) -> torch.nn.Module:
    return randomise(archs.create(name, **given)).double().eval()


def _adapted(name: str, file: dict[str, Any], **given: Any) -> tuple[torch.nn.Module, list[str]]:
    model = archs.create(name, **given).double()
    state, notes = adapt(name, file, model, **given)
    model.load_state_dict(state, strict=True)
    return model.eval(), notes


# --- another image size


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("size", [16, 6, (8, 12)])
def test_positions_are_interpolated_as_in_timm(size, pool):
    shape = {"patch_size": 2, "num_classes": 10, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4}
    shape |= {"global_pool": pool, "class_token": pool == "token", "fc_norm": False}
    small = randomise(VisionTransformer(img_size=8, **shape))
    large = VisionTransformer(img_size=size, **shape)
    state = small.state_dict()
    grid = large.patch_embed.grid_size
    prefix = int(pool == "token")
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], list(grid), [4, 4], num_prefix_tokens=prefix)
    large.load_state_dict(state)
    large.double().eval()
    model, notes = _adapted(
        "deit_nano", small.state_dict(), img_size=size, num_classes=10, in_chans=1, global_pool=pool
    )
    x = _images(2, 1, *grid).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = x + _images(*x.shape)
    assert torch.allclose(model(x), large(x), rtol=1e-10)
    assert len(notes) == 1 and notes[0].startswith("image size 8 -> ")


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (1, 3), (3, 2)])
def test_tiled_token_weights_act_on_each_sub_grid_as_before(rows, cols):
    """The mixing of a large map, cut into sub-grids, is the old mixing of each: block by block, place by place."""
    small = _random("mixer_nano", img_size=(8, 6), token_ratio=0.5)
    h, w = 4, 3
    large = archs.create("mixer_nano", img_size=(8 * rows, 6 * cols), token_ratio=0.5 * rows * cols).double().eval()
    large.load_state_dict(resize(small.state_dict(), (h, w), (h * rows, w * cols)), strict=True)
    x_BHWC = _images(2, h * rows, w * cols, 32)
    for i in range(3):
        mixed, before = large.stages[0][i](x_BHWC), small.stages[0][i]
        for r in range(rows):
            for c in range(cols):
                part = (slice(None), slice(r * h, (r + 1) * h), slice(c * w, (c + 1) * w))
                assert torch.allclose(mixed[part], before(x_BHWC[part]), rtol=1e-10)


def test_a_mixer_on_a_larger_image_is_the_mean_over_its_quarters():
    """So the features of four tiled images are the mean of theirs, down to the head."""
    small = _random("mixer_nano")
    large, notes = _adapted("mixer_nano", small.state_dict(), **(GREY | {"img_size": 16, "token_ratio": 2.0}))
    x = _images(2, 1, 16, 16)
    quarters = [x[..., r : r + 8, c : c + 8] for r in (0, 8) for c in (0, 8)]
    assert torch.allclose(large(x), sum(small(quarter) for quarter in quarters) / 4, rtol=1e-10)
    assert notes == ["image size 8 -> 16 px"]


def test_a_mixer_says_what_a_larger_image_needs():
    file = _random("mixer_nano").state_dict()
    with pytest.raises(ValueError, match=r"the weights are those of token_ratio=2, not 0\.5; set token_ratio=2"):
        _adapted("mixer_nano", file, **(GREY | {"img_size": 16}))
    with pytest.raises(ValueError, match="a 4 x 4 grid fit whole multiples of it, not 6 x 6"):
        _adapted("mixer_nano", file, **(GREY | {"img_size": 12}))


@pytest.mark.proves("implied and resize: own weights at other sizes and channels")
@pytest.mark.parametrize("family", archs.families())
def test_other_sizes_are_carried_over_or_refused(family):
    name = f"{family}_nano"
    own = {"dim": 64} if family == "patchmlp" else {}
    model = _random(name, **own)
    kind = importlib.import_module(f"archs.{family}")
    wanted = {**GREY, **own, "img_size": 16, **({"token_ratio": 2.0} if family == "mixer" else {})}
    if hasattr(kind, "resize") or not kind.BIAS.grid_bound:
        large, _ = _adapted(name, model.state_dict(), **wanted)
        assert large(_images(2, 1, 16, 16)).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"belong to an image of 8 px, 16 were asked for, .*; use img_size 8"):
            _adapted(name, model.state_dict(), **wanted)


# --- other channels, other classes


@pytest.mark.proves("implied and resize: own weights at other sizes and channels")
@pytest.mark.parametrize("name", [f"{family}_nano" for family in archs.families()] + ["patchmlp_nano_unshared"])
def test_grey_images_give_what_equal_channels_gave_and_back(name):
    for before, after in ((3, 1), (1, 3)):
        old = _random(name, in_chans=before)
        new, notes = _adapted(name, old.state_dict(), **(GREY | {"in_chans": after}))
        x = _images(2, 1, 8, 8)
        expected = old(x.expand(-1, before, -1, -1))
        assert torch.allclose(new(x.expand(-1, after, -1, -1)), expected, rtol=1e-9)
        assert notes == [f"input channels {before} -> {after}: the same for equal channels"]


def test_channels_that_cannot_be_made_are_refused():
    file = _random("mixer_nano", in_chans=3).state_dict()
    with pytest.raises(ValueError, match="for 3 channels; only 1 can be made of them, not 4"):
        _adapted("mixer_nano", file, **(GREY | {"in_chans": 4}))


@pytest.mark.parametrize("name", ["mixer_nano", "deit_nano", "convmixer_nano", "mlp_nano"])
def test_other_classes_keep_the_fresh_head_and_the_old_body(name):
    file = _random(name, num_classes=7).state_dict()
    torch.manual_seed(3)
    fresh = archs.create(name).state_dict()
    torch.manual_seed(3)
    model, notes = _adapted(name, file, **GREY)
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh[key].double() if key.startswith("head.") else file[key]))
    assert notes == ["head initialised afresh, 7 -> 10 classes"]
    with pytest.raises(ValueError, match="the weights are for 7 classes, not 10"):
        adapt(name, file, archs.create(name), new_head=False, **GREY)


def test_a_model_of_timm_gets_a_fresh_head_too():
    file = _random("timm/resnet10t", num_classes=7, in_chans=3).state_dict()
    model, notes = _adapted("timm/resnet10t", file, **(GREY | {"img_size": 32}))
    x = _images(2, 1, 32, 32)
    old = archs.create("timm/resnet10t", num_classes=7).double().eval()
    old.load_state_dict(file)
    assert torch.allclose(model.forward_features(x), old.forward_features(x.expand(-1, 3, -1, -1)), rtol=1e-9)
    assert len(notes) == 2


# --- files


def _run(path: Any, **fields: Any) -> Run:
    kwargs = {"depth": 2, "dim": 16}
    return make_run({"model": "mixer_nano", "model_kwargs": kwargs, "initial_checkpoint": str(path), **fields})


def _weights(**given: Any) -> dict[str, Tensor]:
    return randomise(archs.create("mixer_nano", **{"depth": 2, "dim": 16, **given})).state_dict()


def _loaded(path: Any) -> dict[str, Tensor]:
    model = archs.create("mixer_nano", depth=2, dim=16)
    transfer.load(_run(path), model, 10, 1)
    return model.state_dict()


@pytest.mark.parametrize("suffix", ["pth", "pth.tar", "npz", "safetensors"])
def test_every_kind_of_file_is_read(tmp_path, suffix):
    state, path = _weights(), tmp_path / f"file.{suffix}"
    if suffix == "npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    elif suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, path)
    assert all(torch.equal(value, state[key]) for key, value in _loaded(path).items())


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    path.write_text("hello")
    with pytest.raises(Refusal, match="cannot be loaded") as caught:
        _loaded(path)
    assert caught.value.code == CHECKPOINT and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_npz_cannot_execute_code(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(Refusal, match="allow_pickle=False") as caught:
        _loaded(tmp_path / "evil.npz")
    assert caught.value.code == CHECKPOINT


def test_safetensors_without_the_package_says_so(tmp_path, monkeypatch):
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    save_file(_weights(), tmp_path / "file.safetensors")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(Refusal, match="pip install safetensors"):
        transfer.read(tmp_path / "file.safetensors")


def test_what_is_no_dict_or_does_not_fit_is_one_line(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(Refusal, match="holds a list, not weights by name"):
        _loaded(tmp_path / "list.pth")
    torch.save(_weights(depth=3), tmp_path / "deep.pth")
    with pytest.raises(Refusal, match="12 left over") as caught:
        _loaded(tmp_path / "deep.pth")
    assert caught.value.code == CHECKPOINT


# --- runs


def _result(folder: Any) -> list[Any]:
    weights = torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"]
    return [(folder / "summary.csv").read_bytes(), (folder / "metrics.jsonl").read_bytes(), weights]


def test_a_run_starts_from_its_checkpoint_and_resumes_without_it(tmp_path, how):
    """One epoch on, and stopped in the middle, the file then gone: the same bits."""
    file = tmp_path / "start.pth"
    torch.save({"model": _weights(num_classes=7)}, file)
    run = _run(file, epochs=2, train_samples=330, batch_size=64, model_ema=True, model_ema_decay=0.9)
    preflight(run)
    train(run, tmp_path / "a", how)
    count = iter(range(1, 100))
    with pytest.raises(Refusal) as caught:
        train(run, tmp_path / "b", how, lambda: STOPPED if next(count) >= 3 else 0)
    assert caught.value.code == STOPPED
    sha = store.read_json(tmp_path / "b" / "env.json")["initial_checkpoint_sha256"]
    assert sha == store.read_json(tmp_path / "a" / "env.json")["initial_checkpoint_sha256"] and len(sha) == 64
    file.unlink()
    preflight(run, tmp_path / "b")
    train(run, tmp_path / "b", how)
    first, second = _result(tmp_path / "a"), _result(tmp_path / "b")
    assert first[:2] == second[:2]
    assert all(torch.equal(value, second[2][key]) for key, value in first[2].items())
    assert "head initialised afresh, 7 -> 10 classes" in (tmp_path / "a" / "log.txt").read_text()
    train(run.but(initial_checkpoint=None), tmp_path / "scratch", how)
    assert _result(tmp_path / "scratch")[0] != first[0]


def test_the_first_step_is_taken_from_the_checkpoint(tmp_path, how):
    """At a learning rate of nearly nothing the weights stay the file's, and so do those of the average."""
    file, state = tmp_path / "start.pth", _weights()
    torch.save(state, file)
    run = _run(file, epochs=1, train_samples=64, batch_size=64, lr=1e-30, weight_decay=0, model_ema=True)
    train(run, tmp_path / "a", how)
    after = torch.load(tmp_path / "a" / "last.pth.tar", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in after.items())


def test_a_run_can_start_from_the_folder_of_another(tmp_path, how):
    fields = {"epochs": 1, "train_samples": 64, "batch_size": 64}
    first = make_run({"model": "mixer_nano", "model_kwargs": {"depth": 2, "dim": 16}, **fields})
    train(first, tmp_path / "first", how)
    train(_run(tmp_path / "first", lr=1e-30, weight_decay=0, **fields), tmp_path / "second", how)
    assert _result(tmp_path / "first")[2].keys() == _result(tmp_path / "second")[2].keys()
    with pytest.raises(Refusal, match="the weights are those of depth=2, not 3; set depth=2"):
        wrong = _run(tmp_path / "first", **fields).but(model_kwargs={"dim": 16})
        train(wrong, tmp_path / "third", how)


def test_a_missing_file_is_refused_before_anything_is_written(tmp_path, how):
    with pytest.raises(Refusal, match=r"nowhere\.pth does not exist") as caught:
        _run(tmp_path / "nowhere.pth")
    assert caught.value.code == CHECKPOINT
    run = _run(tmp_path / "nowhere.pth", initial_identity="sha256:0123456789abcdef")
    with pytest.raises(Refusal, match=r"nowhere\.pth does not exist"):
        preflight(run)
    with pytest.raises(Refusal, match=r"nowhere\.pth does not exist"):
        train(run, tmp_path / "run", how.model_copy(update={"data_dir": tmp_path}))
    assert not (tmp_path / "run" / "env.json").exists()


def test_a_changed_file_is_refused_on_resume(tmp_path, how):
    file = tmp_path / "start.pth"
    torch.save(_weights(), file)
    run = _run(file, epochs=2, train_samples=330, batch_size=64)
    with pytest.raises(Refusal):
        train(run, tmp_path / "run", how, lambda: STOPPED)
    torch.save({"model": _weights()}, file)
    with pytest.raises(Refusal, match=r"was changed since .* was described \(sha256:") as caught:
        train(run, tmp_path / "run", how)
    assert caught.value.code == CHECKPOINT


def test_runs_without_it_keep_their_signature():
    assert Run().but(initial_checkpoint=None).signature == Run().signature


def test_from_the_command_line(tmp_path, digits, monkeypatch, capsys, caplog):
    torch.save({"model": {f"module.{key}": value for key, value in _weights().items()}}, tmp_path / "start.pth")
    kwargs = ["--model-kwargs", "depth=2", "dim=16"]
    common = ["--data-dir", digits, "--threads", "1"]

    def script(name: str, *args: Any) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args), *map(str, common)])
        importlib.import_module(f"scripts.{name}").main()
        return capsys.readouterr().out

    start = ["--initial-checkpoint", tmp_path / "start.pth", "--epochs", "1", "-b", "64", "--output", tmp_path]
    with caplog.at_level("INFO"):
        assert "done: " in script("train", *kwargs, *start)
    assert f"weights of {tmp_path}/start.pth" in caplog.text
    named = ["--model", "mixer_nano", "--dataset", "digits", *kwargs]
    assert "samples 500" in script("validate", tmp_path / "start.pth", *named)
    with pytest.raises(Refusal, match="say --model NAME --dataset NAME") as caught:
        script("validate", tmp_path / "start.pth")
    assert caught.value.code == CHECKPOINT
    (folder,) = (tmp_path / "runs").iterdir()
    with pytest.raises(Refusal, match="says what it is; leave out --model"):
        script("validate", folder, "--model", "mixer_nano")
