"""Measure a passport part by part; a part that a module does not allow is named as not known, and spoils no other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from analysis.passport import cost, declared, forced, learned, page
from analysis.passport.found import Passport
from analysis.passport.holder import Holder
from engine import models
from engine.errors import line_of
from engine.run import How


def estimate(holder: Holder, names: Sequence[str], speed: bool) -> str:
    """What is to be measured and about how long that takes, from one pass of the module."""
    one, many = forced.timed(holder.model, holder.shape)
    todo = learned.missing(holder, names)
    parts = {"forced to be": many, "costs": 5 + (8 + (300 if one > 0.03 else 3000) * one if speed else 0)}
    if holder.trained and holder.subject:
        a_pass = one * len(holder.subject.images)
        parts["accuracy" + f" and {len(todo)} probes" * bool(todo)] = a_pass + learned.seconds(todo, a_pass)
    return f"about {sum(parts.values()):.0f} s: " + ", ".join(f"{key} {value:.0f} s" for key, value in parts.items())


def measure(
    holder: Holder,
    names: Sequence[str],
    how: How,
    *,
    speed: bool = True,
    batch_size: int | None = None,
    rounds: int = 5,
    command: str = "",
    tell: Callable[[str], None] = print,
) -> Passport:
    """All parts; `names` are probes, `tell` gets a line when a part is done."""
    began, found, failed = time.monotonic(), None, ""
    try:
        found = forced.measure(holder.model, holder.shape, holder.patch_size, tell)
    except Exception as error:  # other people's modules raise whatever they like for what they were not made for
        failed = f"not known: {line_of(error)}"
        tell(failed)
    signature = declared.of(holder.name, holder.arguments, holder.run.opt if holder.run else "adamw")
    tell("relabelings" if signature.gaps else "no relabelings are known")
    counts = cost.count(holder, [each.name for each in found.fields] if found else [])
    tell("parameters and MACs")
    if speed:
        counts = _timed(counts, holder, models.pick_device(how), batch_size, rounds)
        tell("speed and memory")
    else:
        counts.why.append("Speed and memory were not measured: leave out `--no-speed`")
    known = learned.measure(holder, names, how, tell, _lacking(holder))
    return Passport(holder, found, signature, known, counts, command, time.monotonic() - began, page.versions(), failed)


def _timed(counts: cost.Cost, holder: Holder, device: torch.device, batch_size: int | None, rounds: int) -> cost.Cost:
    try:
        return replace(counts, speed=cost.speed(holder, device, batch_size, rounds))
    except Exception as error:  # a module may run in no batch, or not be trained
        return replace(counts, why=[*counts.why, f"speed and memory are not known: {line_of(error)}"])


def _lacking(holder: Holder) -> str:
    """Why there is nothing learned to measure, and the command that does it."""
    asked, words, flags = holder.asked, [], ""
    if not holder.trained:
        words.append("its weights are random")
    if not holder.subject:
        words.append("it was shown no images")
    flags += f" --weights {asked.weights or 'FILE'} --data {asked.dataset or 'NAME'}"
    return f"{' and '.join(words)}; `python scripts/passport.py {asked.word}{flags}` measures it"
