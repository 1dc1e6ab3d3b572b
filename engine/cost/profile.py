"""Size and cost of a model: parameters, MACs and FLOPs, counted on the meta device without allocating weights.

engine/cost/record.py counts MACs, engine/cost/witnesses.py says why other counters differ, and engine/cost/measure.py
measures speed and memory.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import archs
from archs.parts.family import read
from engine.cost.record import Record, record
from engine.cost.witnesses import Account, accounts, check
from engine.errors import Refusal, line_of
from engine.fields import sizes
from engine.fields.sizes import Size, pair, text


def profile(name: str, *, img_size: Size, in_chans: int, num_classes: int, **overrides: Any) -> dict[str, int]:
    """{"params", "macs", "flops"} at batch 1, in evaluation: matrix products and convolutions, 1 MAC = 2 FLOPs.

    Raises Refusal for a model that does not take such an image, or does not classify it: timm has models that want the
    size they were made for, and encoders.
    """
    with torch.device("meta"):
        model = archs.create(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
        try:
            found = record(model, torch.empty(1, in_chans, *pair(img_size)))
        except Exception as error:
            raise Refusal(f"{name} fails on an image of {text(img_size)} px: {line_of(error)}") from error
    if found.output != (1, num_classes):
        raise Refusal(
            f"{name} puts out {found.output or 'no tensor'} for an image, not {num_classes} numbers, one a class"
        )
    return {"params": count_params(model), "macs": found.macs, "flops": 2 * found.macs}


def witnessed(
    name: str, *, img_size: Size, in_chans: int, num_classes: int, **overrides: Any
) -> tuple[dict[str, Any], list[Account]]:
    """The costs of `profile`, the activations, and what each counter says.

    `activations` are the numbers that matrix products and convolutions put out for one image, `saved_bytes` what the
    backward pass needs of them and of the rest for one more image of a batch, in float32: the difference between
    batches of three and of two, because a BatchNorm cannot be trained on a single value. A column `NAME_macs` is a
    counter's own number, None where it has none. Raises Refusal where a counter differs by more than 2 % and no known
    reason explains it.
    """
    shape = {"img_size": img_size, "in_chans": in_chans, "num_classes": num_classes}
    expected = expected_costs(name)["macs"] if shape == own_shape(name) and not overrides and _is_ours(name) else None
    images = (1, in_chans, *pair(img_size))
    costs, true, found = counted(lambda: archs.create(name, **shape, **overrides), images, expected)
    check(name, true, found)
    return costs, found


def counted(
    make: Callable[[], nn.Module], images: tuple[int, int, int, int], expected: int | None = None
) -> tuple[dict[str, Any], Record, list[Account]]:
    """The costs of `witnessed` of any module, the number of record with its parts, and what each counter says.

    Args:
        make: the module, on the default device.
        images: shape of a batch of one.
        expected: MACs in closed form, where there is one.
    """
    true, found = accounts(make, images, expected)
    with torch.device("meta"):
        model = make()
        two, three = (saved_bytes(model, torch.empty(batch, *images[1:])) for batch in (2, 3))
    costs = {
        "params": count_params(model),
        "macs": true.macs,
        "flops": 2 * true.macs,
        "activations": true.activations,
        "saved_bytes": three - two,
    }
    says = {account.counter: account.macs for account in found}
    witnesses = {
        f"{counter.replace(' ', '_')}_macs": says.get(counter)
        for counter in ("closed form", "torch", "fvcore", "torchprofile")
    }
    return {**costs, **witnesses, "fourier_macs": sum(true.outside.values()) or None}, true, found


def by_module(
    name: str, depth: int, *, img_size: Size, in_chans: int, num_classes: int, **overrides: Any
) -> list[dict[str, Any]]:
    """Parameters and MACs of every module down to `depth` dots in its name, children included, and its share of both.

    What a parent does itself, outside its children, is the difference between its row and theirs.
    """
    with torch.device("meta"):
        model = archs.create(name, img_size=img_size, in_chans=in_chans, num_classes=num_classes, **overrides)
        true = record(model, torch.empty(1, in_chans, *pair(img_size)))
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

    A plain name instead asks for that model at the width that meets the budget; `model_kwargs` says which, and `note`
    what a round width gave up.
    """
    plain = not set("*?[") & set(pattern)
    found, note = {}, None
    if plain:
        from archs.parts.budget import search

        solution = search(pattern, **{kind: amount}, **shape, **overrides)
        found[pattern] = solution.arguments
        if solution.exact:
            arguments, cost = solution.exact
            round_words, exact_words = (
                _words({key: value for key, value in given.items() if key not in overrides})
                for given in (solution.arguments, arguments)
            )
            note = (
                f"{pattern}: {round_words}, a multiple of 8, is {solution.cost / amount - 1:+.1%} off the budget; "
                f"exactly: {exact_words}, {cost / amount - 1:+.1%}"
            )
    else:
        found = {name: overrides for name in archs.list_archs(pattern)}
    rows = []
    for name, arguments in found.items():
        full = own_shape(name) | {key: value for key, value in shape.items() if value is not None}
        costs = profile(name, **full, **arguments)
        if plain or costs[kind] <= amount:
            row = {
                "model": name,
                "img_size": sizes.plain(full["img_size"]),
                **costs,
                "model_kwargs": _words(arguments) or None,
            }
            off = {"off_budget_percent": 100 * (costs[kind] / amount - 1)} if plain else {}
            rows.append(row | off | ({"note": note} if note else {}))
    return rows


def _words(arguments: dict[str, Any]) -> str:
    """`key=value` of each, as --model-kwargs takes them."""
    return " ".join(f"{key}={value}" for key, value in arguments.items())


def count_params(model: nn.Module, trainable: bool = False) -> int:
    """Numbers in the parameters, or in those of them that get gradients."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trainable)


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
    return read(family).tables["EXPECTED"][variant]


def _is_ours(name: str) -> bool:
    return not name.startswith("timm/")
