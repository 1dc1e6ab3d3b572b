"""Rankings as rows and on the screen, and the command that trains with the answer."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from analysis import choosing
from analysis.removal.ranks import Ranking, agreement, spearman
from engine.run import Run

SHOWN = 1e4  # larger costs are written with an exponent


def rows(checkpoint: str, rankings: Sequence[Ranking], k: int) -> list[dict[str, Any]]:
    """A row per ranking and layer: cost, place from 1, whether it is chosen, and in which share of resamples.

    Of an order by chance, those of each draw, of way `draw 1` and so on.
    """
    found = []
    for ranking in rankings:
        shares = ranking.frequency(k)
        for draw, order in enumerate(ranking.orders if ranking.drawn else ranking.orders[:1], 1):
            places = {int(layer): place for place, layer in enumerate(order, 1)}
            for i, layer in enumerate(ranking.layers):
                found.append(
                    {
                        "checkpoint": checkpoint,
                        "criterion": ranking.name,
                        "way": f"draw {draw}" if ranking.drawn else ranking.way or None,
                        "layer": layer,
                        "cost": None if ranking.drawn else float(ranking.costs[i]),
                        "place": places[layer],
                        "chosen": places[layer] <= k,
                        "share": float(shares[i]),
                    }
                )
    return found


def costs(rankings: Sequence[Ranking], k: int) -> Table:
    """A column per ranking: the cost of each layer, and its place; those chosen are marked."""
    table = Table("layer", title=f"cost of each layer (place); * is among the {k} chosen")
    for ranking in rankings:
        table.add_column(ranking.label.replace(", ", "\n"), justify="right")
    for i, layer in enumerate(rankings[0].layers):
        cells = []
        for ranking in rankings:
            place = ranking.places()[i] + 1
            if ranking.drawn:
                cells.append(f"({place:.1f})")
                continue
            mark = "*" if layer in ranking.chosen(k) else " "
            cells.append(f"{_number(ranking.costs[i])} ({place:.0f}){mark}")
        table.add_row(str(layer), *cells)
    return table


def stability(rankings: Sequence[Ranking], k: int) -> Table:
    """Which layers are chosen, and in which share of the resamples each is."""
    table = Table("criterion", "chosen", "same choice", title=f"shares of resamples (draws) that choose each of {k}")
    for layer in rankings[0].layers:
        table.add_column(str(layer), justify="right")
    for ranking in rankings:
        chosen = "by chance" if ranking.drawn else ",".join(map(str, ranking.chosen(k)))
        same = ranking.same(k)
        shares = [f"{share:.0%}" if share else "" for share in ranking.frequency(k)]
        table.add_row(ranking.label, chosen, "" if ranking.drawn or np.isnan(same) else f"{same:.0%}", *shares)
    return table


def correlation(rankings: Sequence[Ranking]) -> Table:
    """Spearman's rank correlation of the places of all layers, of each two rankings."""
    shown = [ranking for ranking in rankings if not ranking.drawn]
    table = Table("", title="rank correlation of the orders of all layers")
    for ranking in shown:
        table.add_column(ranking.label.replace(", ", "\n"), justify="right")
    for ranking in shown:
        found = [spearman(ranking.places(), other.places()) for other in shown]
        table.add_row(ranking.label, *("" if np.isnan(rho) else f"{rho:+.2f}" for rho in found))
    return table


def over_checkpoints(rankings: Sequence[Sequence[Ranking]], k: int) -> Table:
    """Of each ranking how often each layer is chosen over several checkpoints, and how alike two of them choose."""
    table = Table("criterion", "overlap of two", "mean rank correlation", title=f"over {len(rankings)} checkpoints")
    for layer in rankings[0][0].layers:
        table.add_column(str(layer), justify="right")
    for same in zip(*rankings, strict=True):
        if same[0].drawn:
            continue
        sets = [ranking.chosen(k) for ranking in same]
        pairs = [spearman(a.places(), b.places()) for i, a in enumerate(same) for b in same[i + 1 :]]
        counts = [sum(layer in chosen for chosen in sets) for layer in same[0].layers]
        cells = [f"{count}/{len(sets)}" if count else "" for count in counts]
        table.add_row(same[0].label, f"{agreement(sets):.0%}", f"{np.mean(pairs):+.2f}", *cells)
    return table


def train_line(checkpoint: Path, run: Run, layers: Sequence[int], epochs: int | None) -> str:
    """The command that dilutes these layers from these weights; three quarters of the epochs, as published (299/400).

    Args:
        epochs: of the training; None: as many as `run` has by default.
    """
    epochs = epochs or Run.model_fields["epochs"].default
    words = ["python", "scripts/train.py", "--model", run.model]
    kwargs = [f"{key}={_word(value)}" for key, value in run.model_kwargs.items()]
    words += ["--model-kwargs", *kwargs] if kwargs else []
    words += ["--dataset", run.dataset, "--img-size", run.pixels, "--initial-checkpoint", str(checkpoint)]
    words += ["--dilute-layers", ",".join(map(str, layers)), "--dilute-epochs", str(max(1, epochs * 3 // 4))]
    return shlex.join([*words, "--epochs", str(max(epochs, 2))])


def meanings(names: Sequence[str], skip: Sequence[str]) -> list[str]:
    """A line per criterion: what its number is, and how it skips."""
    lines = []
    for name in names:
        own = choosing.read(name)
        way = own.get("SKIP", "")
        ways = skip if way == "given" else [way] if way else []
        skipped = f"; skipped: {' or '.join(choosing.SKIPS[each] for each in ways)}" if ways else ""
        lines.append(f"{name}: {own['COST']}{skipped}")
    return lines


def _word(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _number(cost: float) -> str:
    return f"{cost:.0f}" if float(cost).is_integer() and abs(cost) < SHOWN else f"{cost:.4g}"
