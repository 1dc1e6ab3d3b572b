"""Parameters, MACs, memory and measured speed of models, in one run so that they can be compared.

MACs are matrix products and convolutions at batch 1; torch's counter, fvcore, torchprofile and the closed form stand
beside them, and a difference over 2 % that no known reason explains is an error.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.numbers import size
from engine.cli.tables import check_target, parse_amount, table, write
from engine.errors import OUTPUT, Refusal
from engine.fields.values import pairs
from engine.folder.store import SPEEDS


def main() -> int:
    given = parse()

    from engine.cost import profiles

    asked = {key: getattr(given, key) for key in ("img_size", "in_chans", "num_classes")}
    turn = not (given.budget or given.by_module)
    if given.budget:
        rows, notes, failures = profiles.within_budget(given.names, given.kind, given.most, asked, given.kwargs)
    elif given.by_module:
        rows, notes, failures = profiles.by_modules(subjects_of(given, asked), given.by_module)
    else:
        subjects = subjects_of(given, asked)
        rows, notes, failures = profiles.side_by_side(
            subjects,
            device=device_of(given.device),
            speed=not given.no_speed,
            batch_size=given.batch_size,
            rounds=given.rounds,
            amp=given.amp,
            tell=lambda line: print(line, file=sys.stderr, flush=True) if len(subjects) > 1 else None,
        )
        if not given.compare:
            rows = [{key: value for key, value in row.items() if not key.endswith("_ratio")} for row in rows]
    profiles.refuse_if_all(rows, failures)
    if not rows:
        raise Refusal(f"no variant of {' '.join(given.names)} is within {given.budget}")
    show(table([{key: value for key, value in row.items() if key != "differences"} for row in rows], turn))
    print(*notes, sep="\n", end="\n" if notes else "")
    if file := given.results_file or (speeds_of(given.sweep) if given.sweep else None):
        write(file, rows)
        print(f"written: {file}")
    for failure in failures:
        print(f"softmlp: {failure.line}", file=sys.stderr)
    return failures[0].code if failures else 0


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/profile_model.py", description=__doc__)
    parser.add_argument("model", nargs="*", help="family_variant or timm/NAME, several to compare")
    parser.add_argument("--model", dest="models", nargs="+", default=[], help="the same, as a flag")
    parser.add_argument("--compare", nargs="+", default=[], metavar="MODEL", help="the same, with ratios to the first")
    parser.add_argument("--sweep", metavar="NAME", help="each rung of a sweep, for RESULTS/NAME/speeds.csv")
    words = "with --sweep: models beside its rungs, at the size of its images, to be drawn in the report"
    parser.add_argument("--reference", nargs="+", default=[], metavar="MODEL", help=words)
    parser.add_argument(
        "--model-kwargs", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="for all of them"
    )
    parser.add_argument(
        "--img-size", type=size(4096), help="pixels, 32 or 32x64 (default: the variant's own, timm: 224)"
    )
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
    budget = "or params=5M: of patterns, the variants within it; of names, the width (x 8) near it"
    parser.add_argument("--budget", metavar="macs=60M", help=budget)
    parser.add_argument("--results-file", type=Path, help="also write the rows to this .csv, .json or .md")
    given = parser.parse()
    given.names = [*given.model, *given.models, *given.compare] or (["*"] if given.budget else [])
    shaped = given.model_kwargs or given.img_size or given.in_chans or given.num_classes
    if given.reference and not given.sweep:
        raise Refusal("--reference goes with --sweep; name the models themselves otherwise")
    if given.sweep and (given.names or given.budget or shaped):
        raise Refusal("--sweep says which models, at which size; leave out the others")
    if not given.names and not given.sweep:
        raise Refusal("name at least one model; all: python scripts/list_models.py")
    for flag in ("batch_size", "rounds", "in_chans", "num_classes", "by_module"):
        if (value := getattr(given, flag)) is not None and value < 1:
            raise Refusal(f"--{flag.replace('_', '-')} is at least 1, not {value}")
    given.kind, _, amount = (given.budget or "macs=1").partition("=")
    if given.kind not in ("macs", "params"):
        raise Refusal(f"--budget takes macs=AMOUNT or params=AMOUNT, not '{given.budget}'")
    given.most = parse_amount(amount)
    check_target(given.results_file)
    given.kwargs = pairs(given.model_kwargs, "--model-kwargs")
    return given


def subjects_of(given: argparse.Namespace, asked: dict[str, int | None]) -> list[Any]:
    """The named models, each at its own size where none is asked for; or each rung of a sweep, as it is trained."""
    from engine.cost.profiles import Subject, subjects
    from slurm.define import cost
    from slurm.define.load import load

    if given.sweep:
        rungs = [Subject(*rung) for rung in cost.rungs(load(given.sweep))]
        shapes = {tuple(rung.shape.items()): rung.shape for rung in rungs}
        if given.reference and len(shapes) > 1:
            raise Refusal(
                f"--reference: the rungs of {given.sweep} take images of {len(shapes)} shapes; name one by one"
            )
        known = {rung.label for rung in rungs}
        others = [name for name in given.reference if name not in known]
        return [*rungs, *(subjects(others, rungs[0].shape, {}) if others else [])]
    return subjects(given.names, asked, given.kwargs)


def speeds_of(name: str) -> Path:
    """Where report.py and compare.py look for the latencies of a sweep."""
    from slurm.define.load import load

    folder = load(name).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot create {folder}: {error.strerror}; set SOFTMLP_RESULTS", OUTPUT) from None
    return folder / SPEEDS


def device_of(wanted: str) -> Any:
    from engine.models import pick_device
    from engine.run import make_how

    return pick_device(make_how({"device": wanted}))


if __name__ == "__main__":
    run_main(main)
