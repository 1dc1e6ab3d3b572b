"""What was found of a module, and what was not."""

from dataclasses import dataclass, field

from analysis.passport.cost import Cost
from analysis.passport.declared import Declared
from analysis.passport.forced import BORDER, Forced
from analysis.passport.holder import Holder
from analysis.passport.learned import Learned


@dataclass(frozen=True)
class Passport:
    """All that was found; `failed` says why the first part could not be measured."""

    holder: Holder
    forced: Forced | None
    declared: Declared
    learned: Learned
    cost: Cost
    command: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    failed: str = ""


def unknown(found: Passport) -> list[str]:
    """What this page cannot say, a line each, with the command that would tell where there is one."""
    lines = [f"Receptive field and moves: {found.failed}"] if found.failed else []
    if found.forced:
        lines += _untold(found.forced)
    lines += (
        [f"Relabelings that training cannot see: {found.declared.why.removeprefix('not known: ')}"]
        if found.declared.why
        else []
    )
    lines += [f"What it learned: {found.learned.why}"] if found.learned.why else []
    lines += [f"Probe `{name}`: {why}" for name, why in found.learned.failed.items()]
    return lines + found.cost.why


def _untold(forced: Forced) -> list[str]:
    """Moves that no map can tell of, and those that deep maps cannot."""
    lines = []
    for move, answers in forced.moves.items():
        whys = {each.why for each in answers if each.why != "no map"} - {""}
        whys = {"no map has so small a stride" if why.startswith("its stride") else why for why in whys}
        told, last = forced.answer(move, logits=False), forced.exact_to(move)
        title = forced.title(move)
        said = f"an image that is {title}" if "order" not in title else f"an image with its {title}"
        larger = "; a larger --img-size may tell" if BORDER in whys else ""
        if told is None:
            why = "; ".join(sorted(whys)) or "it has no map of the image"
            lines.append(f"Whether a map follows {said}: {why}{larger}")
        elif told.unit == last and BORDER in whys:
            lines.append(f"Whether maps behind `{last}` follow {said}: {BORDER}{larger}")
    return lines
