"""From how many tokens and images on is merging tokens faster? A model with and without it, timed in turn.

    python scripts/bench/merging.py deit_5m --img-size 32 64 128 -b 1 8 64 --share 0.8

`speedup` is the median, with quartiles, of the seconds without merging over those with it, so above 1 merging is
faster; `macs_ratio` is what the multiply-adds alone would give. `r` is such that `--share` of all tokens is gone after
the last layer. The cost of merging is per layer and token, its gain grows with both: the crossover is a property of
the machine, the precision and the model, so measure where you will run.
"""

from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.numbers import percent, whole
from engine.cli.tables import check_target, table, write
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
    parser.add_argument("--results-file", type=Path, help="also write the rows to this .csv, .json or .md")
    given = parser.parse()
    check_target(given.results_file)

    from engine.cost.measure import device_name
    from engine.models import pick_device
    from engine.run import make_how

    device = pick_device(make_how({"device": given.device}))
    rows = []
    for size in given.img_size:
        for batch in given.batch_size:
            rows.append(measure(given, size, batch, device))
            print(*(f"{v:.3g}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True)
    show(table(rows))
    for batch in given.batch_size:
        print(crossover([row for row in rows if row["batch_size"] == batch], batch))
    print(
        f"{device_name(device)}, {'bfloat16' if given.amp else 'float32'}, {'training' if given.train else 'inference'}"
    )
    if given.results_file:
        write(given.results_file, rows)


def measure(given: Any, size: int, batch: int, device: Any) -> dict[str, Any]:
    """One cell of the grid. Raises Refusal for a model that cannot merge."""
    from functools import partial
    from statistics import quantiles

    import archs
    from engine.cost.measure import Subject, in_turn, timed
    from engine.cost.profile import profile
    from engine.fields.values import pairs

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
    return {"model": given.model, "tokens": tokens, "batch_size": batch, "r": merge["merge_r"], **speed}


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
