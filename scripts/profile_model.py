"""Parameters, MACs, memory and measured speed of models, in one run so that they can be compared.

MACs are matrix products and convolutions at batch 1; torch's counter, fvcore, torchprofile and the closed form stand
beside them, and a difference over 2 % that no known reason explains is an error.
"""

import argparse
from pathlib import Path
from typing import Any

from engine.cli import Parser, pairs, run_main, show
from engine.errors import Refusal
from engine.tables import check_suffix, parse_amount, table, write


def main() -> None:
    parser = Parser(prog="scripts/profile_model.py", description=__doc__)
    parser.add_argument("model", nargs="*", help="family_variant or timm/NAME, several to compare")
    parser.add_argument("--model", dest="models", nargs="+", default=[], help="the same, as a flag")
    parser.add_argument("--compare", nargs="+", default=[], metavar="MODEL", help="the same, with ratios to the first")
    parser.add_argument("--model-kwargs", nargs="*", default=[], metavar="KEY=VALUE", help="for all of them")
    parser.add_argument("--img-size", type=int, help="pixels (default: the variant's own, timm: 224)")
    parser.add_argument("--in-chans", type=int, help="channels (default: the variant's own, timm: 3)")
    parser.add_argument("--num-classes", type=int, help="classes (default: the variant's own, timm: 1000)")
    parser.add_argument("-b", "--batch-size", type=int, help="for images/s and memory (default: the fastest)")
    parser.add_argument("--rounds", type=int, default=9, help="timings of each model, in turn")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--no-speed", action="store_true", help="count only")
    parser.add_argument("--by-module", nargs="?", type=int, const=3, metavar="DEPTH", help="per module (3 levels)")
    budget = "or params=5M: of patterns, the variants within it; of names, the width that meets it"
    parser.add_argument("--budget", metavar="macs=60M", help=budget)
    parser.add_argument("--results-file", type=Path, help="also write the rows to this .csv, .json or .md")
    given = parser.parse()
    names = [*given.model, *given.models, *given.compare] or (["*"] if given.budget else [])
    if not names:
        raise Refusal("name at least one model; all: python scripts/list_models.py")
    for flag in ("batch_size", "rounds", "img_size", "in_chans", "num_classes", "by_module"):
        if (value := getattr(given, flag)) is not None and value < 1:
            raise Refusal(f"--{flag.replace('_', '-')} is at least 1, not {value}")
    kind, _, amount = (given.budget or "macs=1").partition("=")
    if kind not in ("macs", "params"):
        raise Refusal(f"--budget takes macs=AMOUNT or params=AMOUNT, not '{given.budget}'")
    most = parse_amount(amount)
    check_suffix(given.results_file)
    kwargs = pairs(given.model_kwargs, "--model-kwargs")
    asked = {key: getattr(given, key) for key in ("img_size", "in_chans", "num_classes")}

    from engine.profile import by_module, own_shape, within

    turn, notes = False, []
    try:
        if given.budget:
            rows = [row for name in names for row in within(name, kind, most, asked, kwargs)]
            rows.sort(key=lambda row: -row[kind])
        else:
            asked = {key: value for key, value in asked.items() if value is not None}
            shapes = [own_shape(name) | asked for name in names]
            if given.by_module:
                both = zip(names, shapes, strict=True)
                rows = [row for name, shape in both for row in by_module(name, given.by_module, **shape, **kwargs)]
            else:
                turn = True
                rows, notes = profiles(names, shapes, kwargs, given)
    except ValueError as error:
        raise Refusal(str(error)) from None
    if not rows:
        raise Refusal(f"no variant of {' '.join(names)} is within {given.budget}")
    show(table([{key: value for key, value in row.items() if key != "differences"} for row in rows], turn))
    print(*notes, sep="\n", end="\n" if notes else "")
    if given.results_file:
        write(given.results_file, rows)


def profiles(
    names: list[str], shapes: list[dict[str, int]], kwargs: dict[str, Any], given: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per model; and what the counters miss, a line each."""
    import archs
    from engine import measure
    from engine.profile import witnessed
    from engine.run import make_how
    from engine.train import pick_device

    device = pick_device(make_how({"device": given.device}))
    rows, notes, subjects = [], [], []
    for name, shape in zip(names, shapes, strict=True):
        costs, accounts = witnessed(name, **shape, **kwargs)
        differences = [f"{account.counter} {line}" for account in accounts for line in account.differences()]
        rows.append({"model": name, "img_size": shape["img_size"], **costs})
        notes += [f"{name}: {line}" for line in differences if " misses " in line]
        if not given.no_speed:
            model = archs.create(name, **shape, **kwargs).to(device)
            image = (shape["in_chans"], shape["img_size"], shape["img_size"])
            subjects.append(measure.Subject(name=name, model=model, image=image, device=device, amp=given.amp))
        rows[-1]["differences"] = "; ".join(differences)
    for row, subject, speed in zip(
        rows, subjects, measure.speeds(subjects, given.batch_size, given.rounds) if subjects else [], strict=False
    ):
        row |= speed | measure.memory(subject, speed["batch_size"])
    for row in rows:
        for kind in ("params", "macs"):
            row[f"{kind}_ratio"] = row[kind] / max(rows[0][kind], 1)
        if not given.compare:
            rows[rows.index(row)] = {key: value for key, value in row.items() if not key.endswith("_ratio")}
    return rows, notes


if __name__ == "__main__":
    run_main(main)
