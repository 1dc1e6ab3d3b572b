"""Size and cost of a model: parameters, MACs and FLOPs, counted on the meta device without allocating weights.

engine/counters.py says how MACs are counted and why other counters differ; engine/measure.py measures speed and memory.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

import archs
from engine.counters import Account, accounts, check, record


def profile(name: str, *, img_size: int, in_chans: int, num_classes: int, **overrides: Any) -> dict[str, int]:
    """{"params", "macs", "flops"} at batch 1: matrix products and convolutions, 1 MAC = 2 FLOPs."""
    with torch.device("meta"):
        model = archs.create(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
        return {"params": count_params(model), **count_macs(model, torch.empty(1, in_chans, img_size, img_size))}


def witnessed(
    name: str, *, img_size: int, in_chans: int, num_classes: int, **overrides: Any
) -> tuple[dict[str, Any], list[Account]]:
    """The costs of `profile`, the activations, and what each counter says.

    `activations` are the numbers that matrix products and convolutions put out for one image, `saved_bytes` what its
    backward pass needs of them and of the rest, in float32. A column `NAME_macs` is a counter's own number, None where
    it has none. Raises Refusal where a counter differs by more than 2 % and no known reason explains it.
    """
    shape = {"img_size": img_size, "in_chans": in_chans, "num_classes": num_classes}
    expected = expected_costs(name)["macs"] if shape == own_shape(name) and not overrides and _is_ours(name) else None
    images = (1, in_chans, img_size, img_size)
    true, found = accounts(lambda: archs.create(name, **shape, **overrides), images, expected)
    check(name, true, found)
    with torch.device("meta"):
        model = archs.create(name, **shape, **overrides)
        saved = saved_bytes(model, torch.empty(images))
    costs = {
        "params": count_params(model),
        "macs": true.macs,
        "flops": 2 * true.macs,
        "activations": true.activations,
        "saved_bytes": saved,
    }
    says = {account.counter: account.macs for account in found}
    witnesses = {
        f"{counter.replace(' ', '_')}_macs": says.get(counter)
        for counter in ("closed form", "torch", "fvcore", "torchprofile")
    }
    return {**costs, **witnesses, "fourier_macs": sum(true.outside.values()) or None}, found


def by_module(
    name: str, depth: int, *, img_size: int, in_chans: int, num_classes: int, **overrides: Any
) -> list[dict[str, Any]]:
    """Parameters and MACs of every module down to `depth` dots in its name, children included, and its share of both.

    What a parent does itself, outside its children, is the difference between its row and theirs.
    """
    with torch.device("meta"):
        model = archs.create(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
        true = record(model, torch.empty(1, in_chans, img_size, img_size))
    params = count_params(model)
    rows = []
    for path, module in model.named_modules():
        macs, own = true.by_module.get(path, 0), count_params(module)
        if path.count(".") < depth and (macs or own):
            row = {"model": name, "module": path or "(all)", "kind": type(module).__name__, "params": own, "macs": macs}
            shares = {"params_percent": 100 * own / max(params, 1), "macs_percent": 100 * macs / max(true.macs, 1)}
            rows.append(row | shares)
    return rows


def within(
    pattern: str, kind: str, amount: int, shape: dict[str, int | None], overrides: dict[str, Any]
) -> list[dict[str, Any]]:
    """The variants that match a pattern and cost at most `amount` of `kind` ("macs" or "params").

    A plain name instead asks for that model at the width that meets the budget; `model_kwargs` says which.
    """
    plain = not set("*?[") & set(pattern)
    found = {}
    if plain:
        from archs.budget import solve

        found[pattern] = solve(pattern, **{kind: amount}, **shape, **overrides)
    else:
        found = {name: overrides for name in archs.list_archs(pattern)}
    rows = []
    for name, arguments in found.items():
        full = own_shape(name) | {key: value for key, value in shape.items() if value is not None}
        costs = profile(name, **full, **arguments)
        if plain or costs[kind] <= amount:
            words = " ".join(f"{key}={value}" for key, value in arguments.items())
            rows.append({"model": name, "img_size": full["img_size"], **costs, "model_kwargs": words or None})
    return rows


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, x_BCHW: Tensor) -> dict[str, int]:
    """{"macs", "flops"} of one forward pass in evaluation mode."""
    macs = record(model, x_BCHW).macs
    return {"macs": macs, "flops": 2 * macs}


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct tensors that a forward pass in training mode keeps for its backward pass.

    The input counts; parameters and buffers do not: they are there anyway.
    """
    training = model.training
    model.train()
    there = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no storage is freed and its identity used again

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(_storage(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    model.train(training)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in there)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def own_shape(name: str) -> dict[str, int]:
    """Image size, channels and classes that a variant was published with; of a timm model, ImageNet's."""
    own = {"img_size": 224, "in_chans": 3, "num_classes": 1000}
    return own | {k: v for k, v in archs.arguments(name).items() if k in own} if _is_ours(name) else own


def expected_costs(name: str) -> dict[str, int]:
    """{"params", "macs"} of a variant of the zoo at its own size, in closed form."""
    family, _, variant = name.partition("_")
    return importlib.import_module(f"archs.{family}").EXPECTED[variant]


def _is_ours(name: str) -> bool:
    return not name.startswith("timm/")
