"""Orders in which layers lose their attention: asked once of the whole model, or again after each pick (greedy).

"Once" orders the layers by the cost of skipping each alone. "Greedy" (NOSE, arXiv 2404.05657, algorithm 1) skips the
layer of least cost, then asks for the cost of each other layer together with those skipped already, and so on; after
`k` picks the rest is ordered by the last answers. Of equal costs the lower layer goes first. The best subset may be
another: neither order looks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from analysis import choosing
from analysis.removal.passes import Passes
from engine.errors import Refusal

DRAWS = 10  # orders by chance


@dataclass(frozen=True)
class Ranking:
    """Orders of the layers by one criterion in one way.

    Args:
        costs: (L,): what decided each layer's place, by the order of `layers`: where greedy, with those before skipped.
        orders: (R, L): layers in the order in which they go: a row per resample or draw; the first is the answer.
    """

    name: str
    way: str
    layers: list[int]
    costs: np.ndarray
    orders: np.ndarray
    drawn: bool = False
    """Whether the rows are draws of chance, none of them the answer."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.way}" if self.way else self.name

    def chosen(self, k: int) -> list[int]:
        """The first k of the answer, ascending."""
        return sorted(int(i) for i in self.orders[0, :k])

    def frequency(self, k: int) -> np.ndarray:
        """(L,): share of the resamples, or draws, in which each layer is among the first k; of the answer without."""
        rows = self.orders if self.drawn or len(self.orders) == 1 else self.orders[1:]
        return np.array([(rows[:, :k] == layer).any(1).mean() for layer in self.layers])

    def same(self, k: int) -> float:
        """Share of the resamples that choose the very same k layers."""
        rows = self.orders[1:]
        return float(np.mean([sorted(row[:k]) == self.chosen(k) for row in rows])) if len(rows) else float("nan")

    def places(self) -> np.ndarray:
        """(L,): at which place each layer goes; of draws, the mean."""
        rows = self.orders if self.drawn else self.orders[:1]
        return np.mean([[list(row).index(layer) for layer in self.layers] for row in rows], 0)


def rank(passes: Passes, name: str, k: int, *, greedy: bool = False) -> Ranking:
    """The layers in the order of one criterion."""
    layers, form = passes.subject.layers, choosing.read(name)["form"]
    if not passes.values(name)[0].isfinite().all():
        raise Refusal(f"{name} is {passes.values(name)[0]} of the whole model: what it looks at is equal in all images")
    if form != "sets":
        costs_RL = passes.values(name).numpy()
        return Ranking(name, "", layers, costs_RL[0], _by_cost(costs_RL, layers))
    if not greedy:
        costs_RL = _costs(passes, name, (), layers)
        return Ranking(name, "once", layers, costs_RL[0], _by_cost(costs_RL, layers))
    paths = [_greedy(passes, name, k, row) for row in range(len(passes.counts_RN))]
    costs = np.array([paths[0][1][layer] for layer in layers])
    return Ranking(name, "greedy", layers, costs, np.array([order for order, _ in paths]))


def by_rule(name: str, layers: Sequence[int], order: np.ndarray) -> Ranking:
    """Of a criterion that asks no model: its costs, a row per draw."""
    return Ranking(name, "", list(layers), order[0], _by_cost(order, layers), drawn=len(order) > 1)


def num_passes(names: Sequence[str], num_layers: int, k: int, greedy: bool) -> tuple[int, int]:
    """Passes over the images: if all resamples choose alike, and at most, if they go through all sets."""
    ways = {choosing.read(name)["SKIP"] for name in names if choosing.read(name)["form"] == "sets"}
    looking = any(choosing.read(name)["form"] != "orders" for name in names)
    steps = k if greedy else 1
    sets = sum(num_layers - i for i in range(steps))
    most = sum(comb(num_layers, i + 1) for i in range(steps))
    return looking + len(ways) * sets, looking + len(ways) * most


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of places; equal places share their mean rank. NaN where one of them does not vary."""
    from scipy.stats import rankdata

    a, b = (rankdata(each) - (len(each) + 1) / 2 for each in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


def agreement(sets: Sequence[Sequence[int]]) -> float:
    """Mean over pairs of what two choices share, over what they hold together (Jaccard); NaN for a single one."""
    pairs = [(set(a), set(b)) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs])) if pairs else float("nan")


def _costs(passes: Passes, name: str, skipped: tuple[int, ...], candidates: Sequence[int]) -> np.ndarray:
    """(R, candidates): the cost of each candidate beside those skipped already, of the whole model."""
    cost, whole = passes.modules[name].cost, passes.values(name)
    return np.stack([cost(whole, passes.values(name, (*skipped, i))).numpy() for i in candidates], 1)


def _greedy(passes: Passes, name: str, k: int, row: int) -> tuple[list[int], dict[int, float]]:
    """The order of one resample, and the cost that decided each layer's place."""
    order: list[int] = []
    costs: dict[int, float] = {}
    for _ in range(k):
        left = [i for i in passes.subject.layers if i not in order]
        now = dict(zip(left, _costs(passes, name, tuple(order), left)[row], strict=True))
        best = min(left, key=lambda i: (now[i], i))
        costs |= now
        order.append(best)
    rest = sorted((i for i in passes.subject.layers if i not in order), key=lambda i: (costs[i], i))
    return [*order, *rest], costs


def _by_cost(costs_RL: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    return np.array(layers)[np.argsort(costs_RL, axis=1, kind="stable")]
