"""From how many tokens and images on is merging tokens faster? A model with and without it, timed in turn.

    python scripts/bench/merging.py deit_5m --img-size 32 64 128 -b 1 8 64 --share 80

`speedup` is the median, with quartiles, of the seconds without merging over those with it, so above 1 merging is
faster; `macs_ratio` is what the multiply-adds alone would give. `r` is such that `--share` of all tokens is gone after
the last layer. The cost of merging is per layer and token, its gain grows with both: the crossover is a property of
the machine, the precision and the model, so measure where you will run. --results-file gains a row per cell as soon as
it is measured, so that a grid may be measured in pieces.
"""

from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.numbers import percent, whole
from engine.cli.tables import append_row, check_target, table
from engine.errors import Refusal


def main() -> None:
    parser = Parser(prog="scripts/bench/merging.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", nargs="?", default="deit_1m", help="a deit, with what --model-kwargs says")
    parser.add_argument("--model-kwargs", nargs="*", default=[], metavar="KEY=VALUE", help="such as mlp_layers=0,2,4")
    parser.add_argument("--img-size", type=whole(1), nargs="+", default=[32, 64, 128], help="one row of the grid each")
    parser.add_argument("-b", "--batch-size", type=whole(1), nargs="+", default=[1, 8, 32], help="one column each")
    parser.add_argument("--share", type=percent, default=80.0, metavar="PERCENT", help="of the tokens gone at the end")
    parser.add_argument("--merge-start", type=whole(0), default=0, help="first layer with attention that merges")
    parser.add_argument("--rounds", type=whole(2), default=9, help="timings of each of the two")
    parser.add_argument("--train", action="store_true", help="time forward, loss and backward instead of inference")
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is one")
    parser.add_argument("--threads", type=whole(1), help="of torch on a CPU (default: all cores)")
    parser.add_argument("--results-file", type=Path, help="also add the rows to this .csv or .json")
    given = parser.parse()
    check_target(given.results_file, (".csv", ".json"))

    import torch

    from engine.cost.measure import device_name
    from engine.models import pick_device
    from engine.run import make_how

    device = pick_device(make_how({"device": given.device}))
    torch.set_num_threads(given.threads or torch.get_num_threads())
    rows = []
    for size in given.img_size:
        for batch in given.batch_size:
            rows.append(measure(given, size, batch, device))
            print(*(f"{v:.3g}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
            if given.results_file:
                append_row(given.results_file, rows[-1])
    show(table(rows))
    for batch in given.batch_size:
        print(crossover([row for row in rows if row["batch_size"] == batch], batch))
    print(
        f"{device_name(device)}, {'bfloat16' if given.amp else 'float32'}, {'training' if given.train else 'inference'}"
    )


def measure(given: Any, size: int, batch: int, device: Any) -> dict[str, Any]:
    """One cell of the grid. Raises Refusal for a model that cannot merge."""
    from functools import partial
    from statistics import quantiles

    import archs
    from engine.cost.measure import Subject, device_name, in_turn, timed
    from engine.cost.profile import profile
    from engine.fields.values import pairs
    from engine.folder.environment import processor

    kwargs = pairs(given.model_kwargs, "--model-kwargs")
    shape = {"img_size": size, "in_chans": 3, "num_classes": 10}
    try:
        plain = archs.create(given.model, **shape, **kwargs)
        if not hasattr(plain, "merging"):
            raise Refusal(f"{given.model} has no tokens that can be merged; deit_* has")
        attending = sum(hasattr(layer[0], "branch") for layer in plain.stages[0]) - given.merge_start
        tokens = len(plain.embed(plain_image(shape))[0])
        if attending < 1:
            raise Refusal(f"--merge-start {given.merge_start}: no layer with attention is left to merge")
        merge = {"merge_r": max(1, round(given.share / 100 * tokens / attending)), "merge_start": given.merge_start}
        merged = archs.create(given.model, **shape, **{**kwargs, **merge})
    except ValueError as error:
        raise Refusal(str(error)) from None
    merged.load_state_dict(plain.state_dict())
    image = (3, size, size)
    subjects = [
        Subject(name=given.model, model=each.to(device).train(given.train), image=image, device=device, amp=given.amp)
        for each in (plain, merged)
    ]
    x_BCHW = subjects[0].images(batch)
    seconds = in_turn(
        [timed(partial(each.train if given.train else each.infer, x_BCHW)) for each in subjects], given.rounds
    )
    low, middle, high = quantiles([a / b for a, b in zip(*seconds, strict=True)], n=4, method="inclusive")
    macs = [profile(given.model, **shape, **{**kwargs, **more})["macs"] for more in ({}, merge)]
    speed = {"speedup": middle, "speedup_q1": low, "speedup_q3": high, "macs_ratio": macs[0] / macs[1]}
    cell = {"model": given.model, "tokens": tokens, "batch_size": batch, "share": given.share, "r": merge["merge_r"]}
    where = {"n": given.rounds, "step": "train" if given.train else "infer"}
    where |= {"precision": "bfloat16" if given.amp else "float32", "device": device_name(device)}
    return cell | {key: float(f"{value:.4g}") for key, value in speed.items()} | where | {"processor": processor()}


def plain_image(shape: dict[str, int]) -> Any:
    import torch

    return torch.zeros(1, shape["in_chans"], shape["img_size"], shape["img_size"])


def crossover(rows: list[dict[str, Any]], batch: int) -> str:
    """From how many tokens on merging is faster at a batch size: in that row and in all with more tokens."""
    rows = sorted(rows, key=lambda row: row["tokens"])
    first = None
    for row in reversed(rows):
        if row["speedup_q1"] <= 1:  # the lower quartile, so that a tie is none
            break
        first = row["tokens"]
    if first is None:
        return f"batch {batch}: not faster up to {rows[-1]['tokens']} tokens"
    return f"batch {batch}: faster from {first} tokens on, of those measured"


if __name__ == "__main__":
    run_main(main)
