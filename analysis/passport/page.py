"""The page of a passport, its JSON and its pictures, in the looks of the report (analysis/report/page.css)."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from analysis.figures import looks
from analysis.passport import parts
from analysis.passport.found import Passport, unknown
from analysis.report import assemble
from engine.errors import OUTPUT, Refusal
from engine.folder.environment import environment
from engine.folder.store import write_bytes, write_json

HERE = Path(__file__).parent
PICTURES = {"fields", "depth", "moves", "learned", "parts"}


def write(found: Passport, folder: Path) -> Path:
    """index.html, passport.json and every picture as .svg and .pdf; the path of the page. Raises Refusal (OUTPUT)."""
    drawn = [parts.forced(found), parts.learned(found), parts.cost(found)]
    text = _template().render(
        title=found.holder.title,
        state=parts.state(found.holder),
        cards=parts.cards(found),
        forced=drawn[0],
        learned=drawn[1],
        costs=drawn[2],
        declared=parts.declared(found.declared),
        tiles=parts.tiles(found.cost),
        unknown=unknown(found),
        command=found.command,
        versions=[*found.versions.items(), ("took", f"{found.seconds:.0f} s")],
        hues=[looks.css(dark) for dark in (False, True)],
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot create {folder}: {error.strerror}; give another --output", OUTPUT) from None
    for old in (*folder.glob("*.svg"), *folder.glob("*.pdf")):
        if old.stem in PICTURES:
            old.unlink()
    for picture, _ in (pair for part in drawn for pair in part.pictures):
        write_bytes(folder / f"{picture.name}.svg", picture.svg)
        write_bytes(folder / f"{picture.name}.pdf", picture.pdf)
    write_json(folder / "passport.json", record(found))
    write_bytes(folder / "index.html", text.encode())
    return folder / "index.html"


def record(found: Passport) -> dict[str, Any]:
    """All numbers, as JSON holds them: NaN is null."""
    holder, forced = found.holder, found.forced
    made: dict[str, Any] = {"model": holder.title, "weights": holder.trained or "random", "shape": list(holder.shape)}
    made |= {"num_classes": holder.num_classes, "patch_size": holder.patch_size, "command": found.command}
    made |= {"versions": found.versions}
    if forced:
        made["forced"] = {
            **{"dtype": forced.dtype, "images": forced.images, "exact": forced.exact, "patch": forced.patch},
            "units": [each.record for each in forced.fields],
            "moves": {
                move: [{**each._asdict(), "verdict": each.verdict(forced.dtype)} for each in answers]
                for move, answers in forced.moves.items()
            },
        }
    made["declared"] = asdict(found.declared)
    learned = found.learned
    made["learned"] = {
        **{"acc1": learned.acc1 and learned.acc1._asdict(), "images": learned.images, "of_record": learned.of_record},
        "dataset": holder.subject.dataset if holder.subject else None,
        "probes": {name: {k: v._asdict() for k, v in each.items()} for name, each in learned.values.items()},
    }
    cost = found.cost
    made["cost"] = {**cost.counts, **cost.speed, "differences": cost.differences}
    made["cost"]["parts"] = [dict(zip(("unit", "params", "macs"), part, strict=True)) for part in cost.parts]
    return _plain(made | {"unknown": unknown(found)})


def versions() -> dict[str, str]:
    """What it was measured with."""
    found = environment()
    return {key: str(found[key]) for key in ("commit", "python", "torch", "timm", "processor") if key in found}


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader([HERE, Path(assemble.__file__).parent])
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    environment.filters["prose"] = assemble.prose
    return environment.get_template("page.html.j2")
