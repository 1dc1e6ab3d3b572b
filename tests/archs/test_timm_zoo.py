"""What timm, torch's tracers and what is built on them may ask of a model, asked of one small variant per family."""

import copy
import json
import sys
import warnings

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call, grad, vmap

import archs
import archs.timm_zoo  # registers softmlp_*

NAMES = [f"softmlp_{family}_nano" for family in archs.families()]


def made(name, **given):
    """The model with all its parameters moved, so that zero weights hide nothing, and two images."""
    torch.manual_seed(0)
    model = timm.create_model(name, **given).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    chans, height, width = timm.data.resolve_data_config(model=model)["input_size"]
    return model, torch.randn(3, chans, height, width)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_every_variant_is_registered_with_what_it_was_made_for():
    assert {*timm.list_models("softmlp_*")} == {f"softmlp_{name}" for name in archs.list_archs()}
    for name in archs.list_archs():
        own, cfg = archs.defaults(name), timm.get_pretrained_cfg(f"softmlp_{name}")
        chans, height, width = cfg.input_size
        assert (own["img_size"], own["in_chans"]) == (height, chans) and height == width
        assert (cfg.num_classes, cfg.classifier, len(cfg.mean), len(cfg.std)) == (
            own["num_classes"],
            "head",
            chans,
            chans,
        )
        assert cfg.fixed_input_size and not cfg.has_weights


@pytest.mark.parametrize("name", [*NAMES, "softmlp_mlp_two"])
def test_create_model_takes_classes_channels_size_and_device(name):
    model, x = made(name)
    assert model(x).shape == (3, model.num_classes)
    cfg, state = model.default_cfg, model.state_dict()
    assert f"{cfg['first_conv']}.weight" in state and f"{cfg['classifier']}.weight" in state
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.forward_head(features), model(x)) and pooled.shape == (3, model.num_features)
    assert torch.equal(model.get_classifier()(pooled), model(x))
    assert model.features(x).shape == (3, *cfg["pool_size"], model.num_features)

    headless, _ = made(name, num_classes=0)
    weights = {key: value for key, value in state.items() if not key.startswith("head.")}
    headless.load_state_dict(weights)
    assert torch.equal(headless(x), pooled) and headless.num_classes == 0
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(5, model.own_pool)
    assert model(x).shape == (3, 5) and model.num_classes == 5
    with pytest.raises(ValueError, match=r"global_pool 'max' is unknown here; known: (avg|token), and '' for none"):
        model.reset_classifier(5, "max")

    grey = timm.create_model(name, in_chans=2, num_classes=3, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in grey.parameters()} == {("meta", torch.float64)} and grey.in_chans == 2
    assert grey(torch.empty(1, 2, *x.shape[2:], device="meta", dtype=torch.float64)).shape == (1, 3)
    with pytest.raises(TypeError, match="has no argument 'dept'; it takes: "):
        timm.create_model(name, dept=3)


@pytest.mark.parametrize("kind", ["getter", "fx", "hook"])
def test_every_extractor_of_timm_takes_the_last_blocks(kind):
    torch.manual_seed(0)
    model = timm.create_model("softmlp_mixer_nano").eval()
    extractor = timm.create_model("softmlp_mixer_nano", features_only=True, feature_cls=kind).eval()
    inside = next(extractor.children())
    assert inside.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    x = torch.randn(2, 1, 8, 8)
    blocks = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)[-3:]
    for found, x_BHWC in zip(extractor(x), blocks, strict=True):
        close(found, x_BHWC.permute(0, 3, 1, 2) if kind == "getter" else x_BHWC)
    with pytest.raises(ValueError, match="softmlp_mlp_two has no blocks to take features of"):
        timm.create_model("softmlp_mlp_two", features_only=True)


def test_there_are_no_weights_to_download():
    with pytest.raises(ValueError, match="softmlp_mixer_nano has no published weights here"):
        timm.create_model("softmlp_mixer_nano", pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_intermediates_are_what_hooks_see(name):
    model, x = made(name)
    seen = []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda _, __, out: seen.append(out))
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x)) and len(maps) == len(model.feature_info) > 0
    grid = model.grid(x)
    for x_BCHW, info, out in zip(maps, model.feature_info, seen, strict=False):
        assert torch.equal(x_BCHW.permute(0, 2, 3, 1), model.to_map(out, grid))
        assert x_BCHW.shape[1] == info["num_chs"] and x_BCHW.shape[2] * info["reduction"] == x.shape[2]
    (last,) = model.forward_intermediates(x, [-1], norm=True, output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(last, model.features(x))

    seen.clear()
    model.forward_intermediates(x, [0], stop_early=True)
    assert len(seen) == 1
    getter = timm.create_model(name, features_only=True, out_indices=(0, -1))
    getter.model.load_state_dict(model.state_dict(), strict=False)
    for found, expected in zip(getter.eval()(x), (maps[0], maps[-1]), strict=True):
        assert torch.equal(found, expected)
    assert getter.feature_info.channels() == [model.feature_info[i]["num_chs"] for i in (0, -1)]

    pruned, width = copy.deepcopy(model), model.feature_info[0]["num_chs"]
    assert pruned.prune_intermediate_layers([0], prune_norm=True) == [0] and len(pruned.blocks()) == 1
    assert torch.equal(pruned.to_map(pruned(x), grid).permute(0, 3, 1, 2), maps[0])
    pruned.reset_classifier(7, model.own_pool)
    assert pruned(x).shape == (3, 7) and pruned.num_features == width


@pytest.mark.parametrize("name", [*NAMES, "softmlp_mlp_six"])
def test_gradient_checkpointing_changes_no_gradient(name):
    model, x = made(name)
    gradients, calls = [], []
    model.blocks()[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model.train()
        for module in model.modules():  # its running statistics are updated by the second forward pass, too
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        model(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 3 and all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", [*NAMES, "softmlp_deit_nano_set", "softmlp_mlp_six"])
def test_tracers_leave_the_batch_free(name):
    model, x = made(name)
    tracer = {"leaf_modules": timm.models.get_notrace_modules(), "param_shapes_constant": True}
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    graph = create_feature_extractor(model, [nodes[-1]], tracer_kwargs=tracer)
    close(graph(x)[nodes[-1]], model(x))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,)).module()
    for images in (x, torch.cat([x, -x])):
        close(program(images), model(images))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_per_sample_add_up(name):
    model, x = made(name)
    parameters = dict(model.named_parameters())

    def loss(values, images):
        return functional_call(model, values, (images,)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x[:, None])
    whole = torch.autograd.grad(model(x).square().sum(), parameters.values())
    for key, expected in zip(parameters, whole, strict=True):
        close(each[key].sum(0), expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_onnx_takes_another_batch(name, tmp_path):
    model, x = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    more = torch.cat([x, -x])
    (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    close(torch.from_numpy(found), model(more).detach(), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_files_the_meta_device_and_channels_last(name, tmp_path):
    model, x = made(name)
    expected = model(x)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = timm.create_model(name)
    held = copy.deepcopy(empty)
    held.load_state_dict(state, assign=True)
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(state)
    filled.init_non_persistent_buffers()
    assert torch.equal(filled(x), expected)
    held.init_non_persistent_buffers()
    assert torch.equal(held.eval()(x), expected)
    moved = model.to(memory_format=torch.channels_last)
    close(moved(x.to(memory_format=torch.channels_last)), expected)
    moved.train()(x).sum().backward()


def test_what_is_exported_is_loaded_by_timm_and_what_timm_saves_by_us(how, tmp_path, monkeypatch, capsys):
    from engine.data.sets import DATASETS
    from engine.folder import checkpoint
    from engine.run import make_run
    from engine.train import train
    from scripts import export_model, validate

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words), "--data-dir", str(how.data_dir)])
        script.main()
        return capsys.readouterr().out

    x = torch.randn(4, 1, 8, 8)
    for model, kwargs in (("mixer_nano", {"depth": 1, "dim": 16}), ("mlp_six", {})):
        run, folder = tmp_path / f"run-{model}", tmp_path / f"out-{model}"
        fields = {"model": model, "model_kwargs": kwargs, "img_size": 8, "train_samples": 128, "epochs": 1}
        train(make_run({**fields, "batch_size": 64}), run, how)
        ours = archs.create(model, img_size=8, in_chans=1, num_classes=10, **kwargs).eval()
        ours.load_state_dict(checkpoint.read(run / "last.pth.tar")["state_dict"])
        said = call(export_model, run, "--output", folder)
        assert ("tensors that blocks share" in said) == (model == "mlp_six")
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(theirs(x), ours(x))
        data, facts = timm.data.resolve_data_config(model=theirs), DATASETS["digits"]
        assert data["input_size"] == (1, 8, 8) and data["crop_pct"] == 1
        assert [value * 255 for value in (*data["mean"], *data["std"])] == pytest.approx([*facts.mean, *facts.std])
        assert json.loads((folder / "config.json").read_text())["architecture"] == f"softmlp_{model}"

        saver = timm.utils.CheckpointSaver(
            theirs, torch.optim.SGD(theirs.parameters(), 0.1), checkpoint_dir=str(folder), recovery_dir=str(folder)
        )
        saver.save_checkpoint(0, 1.0)
        scored = call(validate, run)
        words = ["--model", model, "--dataset", "digits", "--img-size", 8]
        words += ["--model-kwargs", *(f"{key}={value}" for key, value in kwargs.items())] if kwargs else []
        for file in ("model.safetensors", "last.pth.tar"):
            assert call(validate, folder / file, *words) == scored
