"""What a module costs: parameters and MACs by the number of record, what other counters say, memory and speed.

Counting is that of engine/cost/profile.py, speed and memory are measured as scripts/profile_model.py measures them.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from analysis.passport.holder import Holder
from engine.cost import measure
from engine.cost.profile import count_params, counted, expected_costs, own_shape
from engine.cost.record import Record, record
from engine.cost.witnesses import Account, check
from engine.errors import Refusal, line_of
from engine.fields import sizes

COUNTERS = {"closed form": "closed_form_macs", "torch": "torch_macs", "fvcore": "fvcore_macs"}
REST = "all else"  # than the units: the classifier, what stands alone
COUNTERS |= {"torchprofile": "torchprofile_macs"}


@dataclass(frozen=True)
class Cost:
    """`counts` as a row of scripts/profile_model.py has them; `parts` are (unit, params, MACs); `why` names what is
    not known."""

    counts: dict[str, Any] = field(default_factory=dict)
    parts: list[tuple[str, int, int]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    speed: dict[str, Any] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)


def count(holder: Holder, names: list[str]) -> Cost:
    """Costs of the whole and of the modules of these names. What a counter cannot count is None."""
    images = (1, *holder.shape)
    why: list[str] = []
    try:
        counts, true, accounts = counted(lambda: _fresh(holder), images, _expected(holder))
        why += _doubts(holder, true, accounts)
    except Exception as error:  # it may raise anything on the meta device
        try:
            true, accounts = record(copy.deepcopy(holder.model).cpu(), torch.zeros(images)), []
        except Exception as own:
            params = {"params": count_params(holder.model), "macs": None}
            return Cost(params, why=[f"MACs are not known: {type(own).__name__}: {line_of(own)}"])
        counts = {"params": count_params(holder.model), "macs": true.macs, "flops": 2 * true.macs}
        counts |= {"activations": true.activations, "saved_bytes": None} | dict.fromkeys(COUNTERS.values())
        why.append(
            f"other counters and saved bytes are not known: the module does not run without data: {line_of(error)}"
        )
        if true.unknown:
            why.append(f"the MACs of {', '.join(true.unknown)} have no formula and are not in the number of record")
    modules = dict(holder.model.named_modules())
    known = [name for name in dict.fromkeys(names) if name in modules]
    parts = [(name, count_params(modules[name]), true.by_module.get(name, 0)) for name in known]
    rest = (counts["params"] - sum(part[1] for part in parts), counts["macs"] - sum(part[2] for part in parts))
    parts += [(REST, *rest)] if min(rest) >= 0 and any(rest) else []  # below 0 where units share weights
    return Cost(counts, parts, [f"{a.counter} {line}" for a in accounts for line in a.differences()], why=why)


def speed(holder: Holder, device: torch.device, batch_size: int | None, rounds: int) -> dict[str, Any]:
    """Latency, images/s and peaks of memory. Raises what a module raises that does not run there."""
    model = copy.deepcopy(holder.model).to(device)
    subject = measure.Subject(name=holder.title, model=model.requires_grad_(True), image=holder.shape, device=device)
    (found,) = measure.speeds([subject], batch_size, rounds)
    return found | measure.memory(subject, found["batch_size"])


def _fresh(holder: Holder) -> nn.Module:
    """A copy on the default device: what made it may not be repeatable, or not without memory."""
    return copy.deepcopy(holder.model).requires_grad_(True).to(torch.get_default_device())


def _expected(holder: Holder) -> int | None:
    """The closed form of a variant of the zoo at its own size."""
    if not holder.name or holder.name.startswith("timm/"):
        return None
    own = own_shape(holder.name)
    plain = {**own, "img_size": sizes.plain(own["img_size"])}
    given = {**holder.arguments, "img_size": sizes.plain(holder.arguments["img_size"])}
    return expected_costs(holder.name)["macs"] if plain == given else None


def _doubts(holder: Holder, true: Record, accounts: list[Account]) -> list[str]:
    """A counter that differs and nobody knows why, which profile_model.py refuses; here it stands beside the number."""
    try:
        check(holder.title, true, accounts)
    except Refusal as refusal:
        return [str(refusal)]
    return []
