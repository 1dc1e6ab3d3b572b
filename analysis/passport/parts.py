"""The sections of the page: what was found in sentences, figures and tables; nothing is added."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis import probes
from analysis.bias import symmetry
from analysis.bias.probe import Estimate
from analysis.passport import pictures
from analysis.passport.cost import COUNTERS, Cost
from analysis.passport.declared import Declared
from analysis.passport.forced import Field, Forced
from analysis.passport.found import Passport
from analysis.passport.holder import Holder
from analysis.passport.pictures import Picture
from analysis.typeset import MISSING, Sheet, number, quantity
from engine.fields import sizes

MARKS = {"pass": "●", "fail": "○", "undetermined": "?"}


class Part(NamedTuple):
    """A section of the page: a sentence, pictures with their captions, folded tables."""

    said: str = ""
    pictures: Sequence[tuple[Picture, str]] = ()
    tables: Sequence[Sheet] = ()


# --- the first screen


def state(holder: Holder) -> str:
    chans, *size = holder.shape
    images = f"images of {sizes.text(tuple(size))} px, {chans} channel{'s' * (chans > 1)}, {holder.num_classes} classes"
    return f"{holder.trained or 'random weights'} · {images}"


def cards(found: Passport) -> list[tuple[str, str, str]]:
    cost, speed = found.cost.counts, found.cost.speed
    macs = f"{quantity(cost['macs'])} MACs" if cost.get("macs") is not None else "MACs not known"
    costs = f"{quantity(cost['params'])} parameters, {macs} an image"
    if speed:
        costs += f"; {_ms(speed['latency_ms'])} for one, {speed['images_per_s']:,.0f} images/s in batches of "
        costs += f"{speed['batch_size']} ({speed['device']})"
    learned = found.learned
    said = learned.why
    if learned.acc1:
        said = f"{_percent(learned.acc1)} on {learned.images:,} images of {found.holder.subject.dataset}"
        told = [
            f"{words} {number(learned.values[probe][key].value, 1)}"
            for probe, key, words in (
                ("shift", "acc_4", "moved by 4 px"),
                ("patch_shuffle", "acc_2", "quarters shuffled"),
            )
            if key in learned.values.get(probe, {})
        ]
        said += f"; {', '.join(told)}" if told else ""
        said += f"; by chance {number(learned.acc1.null, 1)}"
    cards = [("forced", "Forced to be", _in_short(found)), ("learned", "Learned", said), ("costs", "Costs", costs)]
    return [(kind, label, text[:1].upper() + text[1:] + "." * (not text.endswith("."))) for kind, label, text in cards]


def _in_short(found: Passport) -> str:
    """How far it sees, and what it follows exactly."""
    if not found.forced:
        return f"not known: {found.failed}"
    return f"{_reads(found.forced.fields)}. {_exactly(found.forced)}"


def _reads(fields: Sequence[Field]) -> str:
    """The first unit's field, and from where on all of the image is read."""
    first, whole = fields[0], next((each for each in fields if (each.mass > 0).all()), None)
    if whole is first:
        return "from its first layer on every unit reads all of the image"
    last = max(fields, key=lambda each: each.record["share"])
    far = (
        f"from `{whole.label}` on all of the image"
        if whole
        else (f"`{last.label}` at most {last.extent[0]} × {last.extent[1]} px")
    )
    return f"`{first.label}` reads {first.extent[0]} × {first.extent[1]} px, {far}"


def _exactly(forced: Forced) -> str:
    """Which moves maps follow and logits do not see, to rounding."""
    maps = {move: forced.exact_to(move) for move in forced.moves}
    logits = [move for move in forced.moves if (a := forced.answer(move, True)) and a.verdict(forced.dtype) == "exact"]
    told = [f"{forced.title(move)} up to `{unit}`" for move, unit in maps.items() if unit]
    words = [f"maps follow exactly: {'; '.join(told)}"] if told else ["no map follows any move exactly"]
    words.append(f"logits do not see: {', '.join(map(forced.title, logits))}" if logits else "logits see every move")
    return "; ".join(words).capitalize()


# --- the parts


def forced(found: Passport) -> Part:
    forced = found.forced
    if forced is None:
        return Part(f"Not known: {found.failed}.")
    said = "Measured on weights drawn at random, so that nothing of it is learned, and nothing holds because of how "
    said += "training starts."
    if found.holder.shuffled:
        said += f" It is of the module behind the shuffle ({found.holder.shuffled}) that its run has of the pixels."
    shown = len(pictures.spaced(forced.fields, pictures.SHOWN))
    of = (
        f"{shown} of {len(forced.fields)} units: "
        if shown < len(forced.fields)
        else "Of the middle place of each unit "
    )
    drawn = [
        (
            pictures.fields(forced.fields),
            f"{of}the pixels with half of the gradient (full colour), with 95 % of it (paler), with any (palest); "
            f"below, height and width of all that can influence it. Last: the logits. {forced.images} images of noise, "
            f"{forced.dtype}.",
        ),
        (pictures.depth(forced.fields), "Share of the pixels that a unit can read, and that mostly decide it."),
        (
            pictures.moves(forced),
            "Filled: exact to rounding; hollow: broken. Squares: does the deepest map that can tell move with the "
            "image? Circles: do the logits stay as they are?",
        ),
    ]
    return Part(said, drawn, [_units(forced), _moves(forced)])


def _units(forced: Forced) -> Sheet:
    header = ("unit", "kind", "map", "field, px", "pixels, %", "95 % of gradient, %", "R50, px")
    rows = [
        [
            each.name,
            each.kind,
            "×".join(map(str, each.grid)) if each.grid else MISSING,
            f"{each.extent[0]}×{each.extent[1]}",
            *(number(100 * own[key], 1) for key in ("share", "share_95")),
            MISSING if own["half_radius_px"] is None else number(own["half_radius_px"], 1),
        ]
        for each in forced.fields
        for own in [each.record]
    ]
    note = (
        "R50: radius about the centre of the gradient that holds half of it; of what is no map, over all of its numbers"
    )
    return Sheet("receptive field of every unit", header, rows, pd.DataFrame(), note, "lllrrrr")


def _moves(forced: Forced) -> Sheet:
    """A row per move and unit that says something."""
    rows = [
        [
            forced.title(move),
            each.unit + f" ({each.px} px)" * bool(each.px),
            f"{each.error:.1e}",
            f"{each.null:.1e}",
            each.verdict(forced.dtype),
        ]
        for move, answers in forced.moves.items()
        for each in answers
        if not math.isnan(each.error)
    ]
    note = "error: relative L2 distance from what following exactly would give; unrelated: the same of another image; "
    note += f"exact below {forced.exact:.0e} of that; (px): on larger images, as on its own every field meets "
    note += "the border. Maps that can tell nothing are left out"
    return Sheet(
        "moves, unit by unit", ("image", "unit", "error", "unrelated", ""), rows, pd.DataFrame(), note, "llrrl"
    )


def declared(found: Declared) -> dict[str, Any]:
    """Claims or axes, and the signature."""
    claims = [*found.claims.items(), *found.axes.items()]
    if not found.gaps:
        return {"said": f"Relabelings of the pixels: {found.why}.", "signature": [], "claims": claims}
    said = (
        f"Relabelings of the pixels that training under {found.opt} cannot tell apart (●) or can (○), by training two "
    )
    said += f"copies of {found.measured_on}, which claims the same, in float64."
    rows = [
        (MARKS[symmetry.verdict(gap)], symmetry.GROUPS[group], f"gap of the losses {gap:.0e}")
        for group, gap in found.gaps.items()
    ]
    return {"said": said, "signature": rows, "claims": claims}


def learned(found: Passport) -> Part:
    learned = found.learned
    if learned.acc1 is None:
        return Part(f"Not measured: {learned.why}.")
    said = (
        f"Accuracy {_percent(learned.acc1)} on {learned.images:,} validation images of {found.holder.subject.dataset}"
    )
    if learned.of_record is not None:
        said += f" ({number(learned.of_record)} % is the run's accuracy of record)"
    said += f". {len(learned.values)} probes" + (
        f", of which {len(learned.kept)} were kept in the run's folder" * bool(learned.kept)
    )
    said += "."
    said += f" Of the weights: {'; '.join(found.holder.notes)}." * bool(found.holder.notes)
    drawn = pictures.learned(learned)
    caption = "Mark: value; line: 95 % interval over images; stroke: by chance. The docstring of "
    caption += "`analysis/probes/NAME.py` says what a number means."
    rows = [
        [f"{name}: {key}", *(number(each, 3) for each in estimate), probes.unit(name, key)]
        for name, values in learned.values.items()
        for key, estimate in values.items()
    ]
    header = ("number", "value", "from", "to", "by chance", "unit")
    sheet = Sheet("all numbers of the probes", header, rows, pd.DataFrame(), "", "lrrrrl")
    return Part(said, [(drawn, caption)] if drawn else [], [sheet] if rows else [])


def cost(found: Passport) -> Part:
    cost = found.cost
    counts = cost.counts
    drawn = []
    if cost.parts and counts.get("macs"):
        picture = pictures.parts(cost.parts, counts["params"], counts["macs"])
        drawn = [(picture, "Parameters and MACs of each unit and all inside it; 1 MAC = 2 FLOPs, batch of one.")]
    rows = [["number of record", _whole(counts.get("macs")), ""]]
    for counter, key in COUNTERS.items():
        own = [line.removeprefix(f"{counter} ") for line in cost.differences if line.startswith(f"{counter} ")]
        rows.append(
            [counter, _whole(counts.get(key)), "; ".join(own) or ("agrees" if counts.get(key) is not None else "")]
        )
    note = "the number of record: torch's counter with formulas for what it lacks (engine/cost/record.py)"
    tables = [Sheet("MACs by other counters", ("counter", "MACs", "differs in"), rows, pd.DataFrame(), note, "lrl")]
    return Part("", drawn, tables)


def tiles(cost: Cost) -> list[tuple[str, str, str]]:
    """The big numbers: what, how much, and how it was had."""
    counts, speed = cost.counts, cost.speed
    macs, saved = counts.get("macs"), counts.get("saved_bytes")
    tiles = [(quantity(counts["params"]), "parameters", f"{counts['params']:,}")]
    tiles.append((MISSING if macs is None else quantity(macs), "MACs an image", _whole(macs)))
    activations = counts.get("activations")
    small = "not known" if saved is None else f"{saved / 1e6:.3g} MB kept for the backward pass"
    tiles.append((MISSING if activations is None else quantity(activations), "activations", small))
    if speed:
        tiles.append((_ms(speed["latency_ms"]), "for one image", _quartiles(speed, "latency_ms", "ms", 2)))
        batch = f"batches of {speed['batch_size']}; {_quartiles(speed, 'images_per_s', '', 0)}"
        tiles.append((f"{speed['images_per_s']:,.0f}", "images/s", batch))
        train = speed["train_peak_mb"]
        told = "training step not possible" if train is None else f"{train:,.0f} MB in a training step"
        tiles.append((f"{speed['infer_peak_mb']:,.0f} MB", f"peak, batch of {speed['batch_size']}", told))
    return tiles


def _quartiles(speed: dict[str, Any], key: str, unit: str, digits: int) -> str:
    return f"quartiles {speed[f'{key}_q1']:,.{digits}f} to {speed[f'{key}_q3']:,.{digits}f} {unit}".rstrip()


# --- small words


def _percent(estimate: Estimate) -> str:
    return f"{number(estimate.value, 1)} % [{number(estimate.low, 1)}, {number(estimate.high, 1)}]"


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _whole(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"
