"""The hidden units of a plain MLP, which pruning can take whole: the graph that they are nodes of, and their masks.

A unit is a row of one layer and its bias, and a column of those that read it. In layers W x, relu, norm, the columns
alone make it as if it had never been; where a norm stands before the layer (Scaling MLPs), it would still see the zero,
so such nets are refused. A skip ties the units on both of its ends: they are one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from archs.parts.backbone import Backbone
from archs.parts.layers import Patchify, Residual
from engine.errors import Refusal

CALIBRATION = 64  # images, as published


class Layer(NamedTuple):
    """A hidden layer, in float64 on the CPU: weight (out, in), norms of its inputs (in,) and of relu(w x) (out,)."""

    weight: Tensor
    before: Tensor
    after: Tensor
    skip: bool


class Chain(NamedTuple):
    """The linear layers from the pixels to the classes, the last of which has no units, and where skips go around."""

    names: list[str]
    linears: list[nn.Linear]
    skips: list[bool]

    def ties(self) -> list[list[int]]:
        """Hidden layers that share their units, in order."""
        groups: list[list[int]] = []
        for i, skip in enumerate(self.skips[:-1]):
            groups += [] if skip else [[]]
            groups[-1].append(i)
        return groups


def chain(model: nn.Module) -> Chain:
    """Of a model of family mlp without a norm before its layers. Raises Refusal for any other."""
    found = _chain(model)
    if found is None:
        raise Refusal(
            "units can be taken from plain MLPs whose norm, if any, is behind the activation: mlp_two to mlp_twelve, "
            "or mlp_* with --model-kwargs layer=linear_relu"
        )
    return found


def _chain(model: nn.Module) -> Chain | None:
    if not isinstance(model, Backbone) or not isinstance(model.stem, nn.Sequential) or len(model.stages) != 1:
        return None
    first, *rest = model.stem
    if not isinstance(first, Patchify) or not rest or not isinstance(rest[0], nn.ReLU):
        return None
    names, linears, skips = ["stem.0.proj"], [first.proj], [False]
    for i, block in enumerate(model.stages[0]):
        skip = isinstance(block, Residual)
        body = block.branch if skip else block
        if not isinstance(body, nn.Sequential) or not isinstance(body[0], nn.Linear):
            return None
        names.append(f"stages.0.{i}.{'branch.0' if skip else '0'}")
        linears.append(body[0])
        skips.append(skip)
    return Chain([*names, "head"], [*linears, model.head], [*skips, False])


@torch.no_grad()
def layers(model: nn.Module, x_BCHW: Tensor) -> list[Layer]:
    """The hidden layers of a model before calibration images."""
    found = chain(model)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def note(i: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor], put_out: Tensor) -> None:
            before, after = (x.detach().double().flatten(0, -2).cpu() for x in (given[0], put_out))
            seen[i] = before.norm(dim=0), after.relu().norm(dim=0)

        return hook

    hooks = [linear.register_forward_hook(note(i)) for i, linear in enumerate(found.linears)]
    training = model.training
    try:
        model.eval()(x_BCHW)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    weights = [linear.weight.detach().double().cpu() for linear in found.linears[:-1]]
    return [Layer(weight, *seen[i], found.skips[i]) for i, weight in enumerate(weights)]


def kept(model: nn.Module, scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Which units of each hidden layer stay, (units,) bool: all but the lowest `share` of those of each tie.

    One that reads nothing and is read by nobody goes first; of equal ones the later.
    """
    found = chain(model)
    result: list[Tensor] = [torch.empty(0)] * len(scores)
    for tie in found.ties():
        total = torch.stack([scores[i].double() for i in tie]).sum(0)
        gone = ~torch.stack([(found.linears[i].weight != 0).any(1).cpu() for i in tie]).any(0)
        order = total.masked_fill(gone, -torch.inf).argsort(dim=0, descending=True, stable=True)
        stays = torch.zeros(len(order), dtype=torch.bool)
        stays[order[: max(1, round((1 - share) * len(order)))]] = True
        for i in tie:
            result[i] = stays
    return result


def masks(model: nn.Module, stays: Sequence[Tensor]) -> dict[str, Tensor]:
    """By the name of each parameter, true where it stays."""
    found, result = chain(model), {}
    for i, (name, linear) in enumerate(zip(found.names, found.linears, strict=True)):
        rows = stays[i] if i < len(stays) else torch.ones(linear.out_features, dtype=torch.bool)
        columns = stays[i - 1] if i else torch.ones(linear.in_features, dtype=torch.bool)
        result[f"{name}.weight"] = rows[:, None] & columns
        if i < len(stays):
            result[f"{name}.bias"] = rows
    return result
