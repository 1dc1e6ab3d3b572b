"""Depthwise convolution, forward and backward with all three gradients, ours beside torch's.

A ratio is torch's seconds over ours, with quartiles over rounds in which they take turns: above 1 ours is faster.
`before` is what a model calls without our layer, bfloat16 in channels_last layout; `best` whichever of bfloat16 and
float32, channels_last and NCHW, is fastest for torch in a first pass. `gflops` is ours, `matmul_gflops` a square
product's in bfloat16, measured in the same process.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from engine.cli.flags import Parser, run_main
from engine.cli.tables import check_target, write
from engine.errors import Refusal

if TYPE_CHECKING:
    from torch import nn

# Side of the map, channels, kernel size.
CASES = ("8,256,3", "8,64,5", "8,256,5", "8,256,9", "16,256,5", "16,128,7", "16,64,9", "32,64,5", "32,64,9")


def main() -> None:
    parser = Parser(prog="scripts/bench/depthwise.py", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"SIDE,CHANNELS,KERNEL (default: {' '.join(CASES)})")
    parser.add_argument("-b", "--batch-size", type=int, default=128, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=9, help="timings of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results-file", type=Path, help="also write the rows to this .csv, .json or .md")
    given = parser.parse()
    check_target(given.results_file)
    if min(given.batch_size, given.rounds, given.threads) < 1:
        raise Refusal("--batch-size, --rounds and --threads are at least 1")
    cases = [_case(text) for text in given.case or CASES]

    import torch

    torch.set_num_threads(given.threads)
    rows = []
    for side, chans, kernel_size in cases:
        rows.append(_row(given.batch_size, side, chans, kernel_size, given.rounds))
        print(_say(rows[-1]), flush=True)
    if given.results_file:
        write(given.results_file, rows)


def _case(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise Refusal(f"'{text}' is no case; write SIDE,CHANNELS,KERNEL, as {CASES[0]}")
    side, chans, kernel_size = map(int, parts)
    return side, chans, kernel_size


def _row(batch: int, side: int, chans: int, kernel_size: int, rounds: int) -> dict[str, Any]:
    import torch

    from archs.kernels.depthwise import DepthwiseConv2d
    from engine.cost.measure import in_turn, timed
    from engine.cost.peak import matmul_flops
    from engine.folder.environment import processor

    plain = torch.nn.Conv2d(chans, chans, kernel_size, groups=chans, padding="same")
    shape = (batch, chans, side, side)
    torchs = {
        f"{dtype} {layout}": _both_passes(plain, shape, dtype, layout)
        for dtype in ("bfloat16", "float32")
        for layout in ("channels_last", "contiguous_format")
    }
    first = {name: min(_seconds(run), _seconds(run)) for name, run in torchs.items()}
    best = min(first, key=first.__getitem__)
    ours = _both_passes(DepthwiseConv2d(chans, kernel_size), shape, "bfloat16", "channels_last")
    compared = [ours, torchs["bfloat16 channels_last"], torchs[best]]
    found = in_turn([timed(run) for run in compared], rounds)
    row = {"side": side, "chans": chans, "kernel_size": kernel_size, "batch_size": batch, "best": best}
    row |= {"n": rounds, "threads": torch.get_num_threads(), "processor": processor()}
    for name, seconds in zip(("ours", "before", "best"), found, strict=True):
        row[f"{name}_ms"] = 1e3 * median(seconds)
    for name, seconds in (("before", found[1]), ("best", found[2])):
        ratios = [theirs / own for own, theirs in zip(found[0], seconds, strict=True)]
        q1, middle, q3 = quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
        row |= {f"ratio_{name}": middle, f"ratio_{name}_q1": q1, f"ratio_{name}_q3": q3}
    row["gflops"] = 6 * batch * side**2 * chans * kernel_size**2 / median(found[0]) / 1e9
    row["matmul_gflops"] = matmul_flops("cpu", torch.bfloat16, torch.get_num_threads()) / 1e9
    return row


def _say(row: dict[str, Any]) -> str:
    case = f"{row['side']} x {row['side']} x {row['chans']}, {row['kernel_size']} x {row['kernel_size']}"
    parts = [f"{case}: {row['ours_ms']:.3g} ms, {row['gflops']:.0f} GFLOP/s; torch takes"]
    for name, what in (("before", "bfloat16 channels_last"), ("best", row["best"])):
        middle, low, high = (row[f"ratio_{name}{end}"] for end in ("", "_q1", "_q3"))
        parts.append(f"{middle:.2f} ({low:.2f} to {high:.2f}) times as long in {what},")
    return " ".join(parts).rstrip(",")


def _both_passes(layer: "nn.Module", shape: tuple[int, ...], dtype: str, layout: str) -> Callable[[], Any]:
    """A function that runs the layer on one batch and asks for the gradients of images, weights and bias."""
    import torch

    kind = {"dtype": getattr(torch, dtype), "memory_format": getattr(torch, layout)}
    layer = copy.deepcopy(layer).to(kind["dtype"])
    images, gradient = (torch.randn(shape).to(**kind) for _ in range(2))
    images.requires_grad_()
    return lambda: torch.autograd.grad(layer(images), [images, *layer.parameters()], gradient)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_main(main)
