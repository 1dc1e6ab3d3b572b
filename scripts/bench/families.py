"""Speed of our models beside independent implementations of them, timm's or the authors', with the same weights.

A ratio is the reference's seconds over ours: above 1 ours is faster. It is the median, with quartiles, of the ratios of
neighbouring timings, ours and the reference's in turn in one process, so that a passing load falls on both.
"""

from pathlib import Path

from engine.cli.flags import Parser, run_main, show
from engine.cli.tables import check_target, table, write
from engine.errors import Refusal

# name -> images in a batch
CASES = {
    "mixer_1m": 32,
    "mixer_s16": 4,
    "resmlp_1m": 32,
    "resmlp_s12": 4,
    "gmlp_1m": 32,
    "gmlp_ti16": 4,
    "convmixer_1m": 32,
    "convmixer_w256_d8": 8,
    "deit_1m": 32,
    "deit_ti16": 4,
}
# Needs --reference-dir.
AUTHORS_CASES = {"vip_s7": 1, "cyclemlp_b1": 2, "gfnet_ti": 4}
STEPS = ("infer", "train")


def main() -> None:
    parser = Parser(prog="scripts/bench/families.py", description=__doc__)
    parser.add_argument("model", nargs="*", help=f"family_variant (default: {' '.join(CASES)})")
    parser.add_argument("-b", "--batch-size", type=int, help="images in a batch (default: a few, by model)")
    parser.add_argument("--rounds", type=int, default=25, help="timings of each of the two")
    parser.add_argument("--quick", action="store_true", help="5 rounds of the *_1m variants")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is one")
    parser.add_argument(
        "--reference-dir", nargs="+", type=Path, default=[], help="checkouts of authors' code, preferred to timm's"
    )
    parser.add_argument("--results-file", type=Path, help="also write the rows to this .csv, .json or .md")
    given = parser.parse()
    check_target(given.results_file)
    for folder in given.reference_dir:
        if not folder.is_dir():
            raise Refusal(f"--reference-dir {folder} is no folder")
    cases = CASES | (AUTHORS_CASES if given.reference_dir else {})
    names = given.model or [name for name in cases if not given.quick or name.endswith("_1m")]
    rounds = 5 if given.quick else given.rounds
    if rounds < 1 or (given.batch_size or 1) < 1:
        raise Refusal("--rounds and --batch-size are at least 1")

    from engine.cost.measure import Subject, ratios
    from engine.cost.profile import own_shape
    from engine.cost.references import pair
    from engine.models import pick_device
    from engine.run import make_how

    device = pick_device(make_how({"device": given.device}))
    rows = []
    for name in names:
        try:
            shape = own_shape(name)
            ours, theirs, who = pair(name, given.reference_dir)
        except ValueError as error:
            raise Refusal(str(error)) from None
        image = (shape["in_chans"], shape["img_size"], shape["img_size"])
        batch = given.batch_size or cases.get(name, 1)
        for amp in (False, True):
            two = [
                Subject(name=name, model=model.to(device), image=image, device=device, amp=amp)
                for model in (ours, theirs)
            ]
            for step in STEPS:
                dtype = "bfloat16" if amp else "float32"
                case = {"model": name, "reference": who, "batch_size": batch, "step": step, "dtype": dtype}
                try:
                    rows.append(case | ratios(*two, step, batch, rounds))
                except NotImplementedError as error:  # as of a deformable convolution in bfloat16
                    print(f"{name} {step} {dtype}: the reference cannot: {error}", flush=True)
                    continue
                print(*(f"{v:.3g}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
    show(table(rows))
    if given.results_file:
        write(given.results_file, rows)


if __name__ == "__main__":
    run_main(main)
