"""Softmax attention in bfloat16 on a CPU, forward and backward with all three gradients, ours beside torch's.

A ratio is torch's seconds over ours, with quartiles over rounds in which they take turns: above 1 ours is faster.
`error` is the largest of the relative errors of the result and the gradients against float64, of the same numbers.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from engine.cli.flags import Parser, run_main
from engine.cli.tables import check_target, write
from engine.errors import Refusal

if TYPE_CHECKING:
    from torch import Tensor

# Images, heads, tokens, channels of a head.
CASES = ("128,4,64,12", "128,3,65,64", "16,3,197,64", "16,12,197,64", "4,3,577,64")


def main() -> None:
    parser = Parser(prog="scripts/bench/attention.py", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"BATCH,HEADS,TOKENS,CHANNELS (default: {' '.join(CASES)})")
    parser.add_argument("--rounds", type=int, default=9, help="timings of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results-file", type=Path, help="also write the rows to this .csv, .json or .md")
    given = parser.parse()
    check_target(given.results_file)
    if min(given.rounds, given.threads) < 1:
        raise Refusal("--rounds and --threads are at least 1")
    cases = [_case(text) for text in given.case or CASES]

    import torch

    torch.set_num_threads(given.threads)
    rows = []
    for case in cases:
        rows.append(_row(case, given.rounds))
        row = rows[-1]
        print(
            f"{row['case']}: {row['ours_ms']:.3g} ms; torch takes {row['ratio']:.2f} ({row['ratio_q1']:.2f} to "
            f"{row['ratio_q3']:.2f}) times as long, error {row['error_torch']:.1e} for {row['error']:.1e}",
            flush=True,
        )
    if given.results_file:
        write(given.results_file, rows)


def _case(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) for part in parts):
        raise Refusal(f"'{text}' is no case; write BATCH,HEADS,TOKENS,CHANNELS, as {CASES[0]}")
    return tuple(map(int, parts))


def _row(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from archs.kernels.attention import attention
    from engine.cost.measure import in_turn, timed
    from engine.folder.environment import processor

    ours, torchs = (
        _both_passes(function, shape, torch.bfloat16) for function in (attention, scaled_dot_product_attention)
    )
    exact = _both_passes(scaled_dot_product_attention, shape, torch.float64)()
    mine, theirs = in_turn([timed(ours), timed(torchs)], rounds)
    ratios = [other / own for own, other in zip(mine, theirs, strict=True)]
    q1, middle, q3 = quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
    return {
        **{"case": ",".join(map(str, shape)), "ours_ms": 1e3 * median(mine)},
        **{"ratio": middle, "ratio_q1": q1, "ratio_q3": q3, "n": rounds},
        **{"error": _error(ours(), exact), "error_torch": _error(torchs(), exact)},
        **{"threads": torch.get_num_threads(), "processor": processor(), "torch": torch.__version__},
    }


def _both_passes(function: Callable[..., "Tensor"], shape: tuple[int, ...], dtype: Any) -> Callable[[], list["Tensor"]]:
    """A function that gives the result of one batch and the gradients of queries, keys and values."""
    import torch

    generator = torch.Generator().manual_seed(0)
    *given, gradient = (torch.randn(shape, generator=generator).bfloat16().to(dtype) for _ in range(4))
    for each in given:
        each.requires_grad_()

    def run() -> list["Tensor"]:
        made = function(*given)
        return [made.detach(), *torch.autograd.grad(made, given, gradient)]

    return run


def _error(found: list["Tensor"], exact: list["Tensor"]) -> float:
    pairs = zip(found, exact, strict=True)
    return max(((one.double() - other).norm() / other.norm()).item() for one, other in pairs)


if __name__ == "__main__":
    run_main(main)
